from collections import Counter

from pipeline.recordings.splits import split_groups


def test_every_class_is_in_both_splits_if_possible() -> None:
    labels_of = {f"{name}{index}": [name] for name, count in (("a", 20), ("b", 5), ("c", 2)) for index in range(count)}
    split_of = split_groups(labels_of, eval_share=0.2)
    counts = Counter((group[0], split) for group, split in split_of.items())
    assert counts == {
        ("a", "eval"): 4,
        ("a", "train"): 16,
        ("b", "eval"): 1,
        ("b", "train"): 4,
        ("c", "eval"): 1,
        ("c", "train"): 1,
    }


def test_class_with_one_file_is_in_train() -> None:
    labels_of = {"x": ["rare", "common"], "y": ["common"], "z": ["common"]}
    split_of = split_groups(labels_of, eval_share=0.5)
    assert split_of["x"] == "train"
    assert sorted(split_of.values()) == ["eval", "eval", "train"] or sorted(split_of.values()) == [
        "eval",
        "train",
        "train",
    ]


def test_splits_depend_on_the_seed_only() -> None:
    labels_of = {str(index): ["a"] for index in range(40)}
    assert split_groups(labels_of, 0.3, seed=1) == split_groups(dict(reversed(labels_of.items())), 0.3, seed=1)
    assert split_groups(labels_of, 0.3, seed=1) != split_groups(labels_of, 0.3, seed=2)
