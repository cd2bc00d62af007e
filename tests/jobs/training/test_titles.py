import dataclasses

import pytest

from ast_model import recipes
from ast_model.config import ASTConfig
from jobs.training.settings import TrainJobConfig
from jobs.training.titles import run_title
from pipeline.snapshots.snapshot import Snapshot

TRAIN = recipes.demo().train
WITHOUT_MIXUP = dataclasses.replace(TRAIN.augment, mixup_probability=0.0)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({}, "ab12 · 64×2 · random · full · mine "),
        ({"learning_rate": 3e-4}, "ab12 lr 0.0003 · 64×2 · random · full · mine "),
        ({"draws_per_epoch": 400, "seed": 3}, "ab12 seed 3 draws 4… · 64×2 · "),
        ({"num_reader_threads": 4}, "ab12 num_reader_thr… · 64×2 · "),
        ({"augment": WITHOUT_MIXUP}, "ab12 mixup 0 · 64×2 · "),
    ],
)
def test_title_starts_with_changed_settings_and_is_unique_within_20_characters(
    settings: dict[str, object], start: str, snapshot: Snapshot
) -> None:
    shape = recipes.demo().model
    size = f"{shape.width}×{shape.depth}"
    train = dataclasses.replace(TRAIN, **settings)
    config = TrainJobConfig("demo", "data/mine", model=shape, train=train)
    names = [run_title(config, config.model, snapshot, f"demo-20260101-000000-{end}") for end in ("ab12", "cd34")]
    assert names[0].startswith(start.replace("64×2", size))
    assert names[0][:20] != names[1][:20]


@pytest.mark.parametrize(
    ("preset", "model", "init", "middle"),
    [
        ("finetune_head", ASTConfig.tiny(num_frames=64), "", "tiny · random · head"),
        ("finetune", ASTConfig.base(), "MIT/ast-16-16-0.442", "base · init MIT/ast-16-16-0.442 · full"),
        ("finetune", ASTConfig.eat(), "/data/own/1a2b/runs/finetune-1-ab/average/e", "eat · init finetune-1-ab · full"),
        ("finetune", ASTConfig.nano(), f"/weights/{'long' * 9}.pth", "nano · init longlonglonglonglonglon… · full"),
    ],
)
def test_title_shows_size_start_method_and_data(
    preset: str, model: ASTConfig, init: str, middle: str, snapshot: Snapshot
) -> None:
    config = TrainJobConfig(preset, "s3://bucket/dogs", model=model, train=dataclasses.replace(TRAIN, init=init))
    title = run_title(config, model, snapshot, f"{preset}-20260101-000000-ab12")
    assert title == f"ab12 · {middle} · dogs {snapshot.snapshot_id[:6]}"
