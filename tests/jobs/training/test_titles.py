import dataclasses

import pytest

from ast_model import recipes
from jobs.training.settings import TrainJobConfig
from jobs.training.titles import run_title
from pipeline.snapshots.snapshot import Snapshot

TRAIN = recipes.demo().train
WITHOUT_MIXUP = dataclasses.replace(TRAIN.augment, mixup_probability=0.0)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({}, "as preset ab12 · demo · data "),
        ({"learning_rate": 3e-4}, "lr 0.0003 ab12 · demo · "),
        ({"draws_per_epoch": 400, "seed": 3}, "seed 3 draws 4… ab12 · demo · "),
        ({"num_reader_threads": 4}, "num_reader_thr… ab12 · demo · "),
        ({"augment": WITHOUT_MIXUP}, "mixup 0 ab12 · demo · "),
    ],
)
def test_title_starts_with_changed_settings_and_is_unique_within_20_characters(
    settings: dict[str, object], start: str, snapshot: Snapshot
) -> None:
    config = TrainJobConfig("demo", model=recipes.demo().model, train=dataclasses.replace(TRAIN, **settings))
    names = [run_title(config, config.model, snapshot, f"demo-20260101-000000-{end}") for end in ("ab12", "cd34")]
    assert names[0].startswith(start)
    assert names[0][:20] != names[1][:20]
