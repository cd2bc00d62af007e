from jobs import fsd50k


def test_fsd50k_trains_on_random_crops_and_validates_on_the_official_split() -> None:
    config = fsd50k.preset()
    assert (config.train.eval_split, config.train.loss, config.train.augment.random_crop) == ("valid", "bce", True)
