"""Commands check their initial weights before fetching, reading or converting."""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ast_model.config import ASTConfig, TrainConfig
from ast_model.export import export_safetensors
from ast_model.model import AST
from jobs import audioset, esc50, finetune, speechcommands, train
from jobs.training.initial_weights import open_initial_weights
from pipeline.errors import WeightsError

MISSING = (
    ("../earlier/nothing.pth", r"expected weights at .*/earlier/nothing\.pth, found nothing"),
    ("MIT/no-such-ast", r"put its model\.safetensors and config\.json into a folder"),
)
SHAPE = ASTConfig(3, num_frames=128, freq_stride=16, time_stride=16, width=24, depth=1, num_heads=1)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Relative path of weights next to the working folder."""
    export_safetensors(AST(SHAPE), tmp_path / "earlier" / "average" / "model.safetensors")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return "../earlier/average"


def test_relative_path_of_weights_is_resolved_for_all_folders(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_initial_weights(TrainConfig(init=weights), SHAPE, resume="")
    assert opened == TrainConfig(init=str(tmp_path / "earlier" / "average"))
    monkeypatch.chdir("/")
    assert open_initial_weights(opened, SHAPE, resume="") == opened


def test_weights_of_another_shape_are_rejected(weights: str) -> None:
    with pytest.raises(WeightsError, match=r"expected class_token of shape \(1, 1, 48\), found \(1, 1, 24\)"):
        open_initial_weights(TrainConfig(init=weights), dataclasses.replace(SHAPE, width=48), resume="")


def test_resumed_run_does_not_need_its_initial_weights() -> None:
    gone = TrainConfig(init="../gone.pth")
    assert open_initial_weights(gone, SHAPE, resume="run-1") == gone


@pytest.mark.parametrize(
    ("job", "init", "message"),
    [
        *((job, *case) for job in (audioset, train, esc50, speechcommands) for case in MISSING),
        # Commands for other data sets adopt the shape of the weights.
        *((job, "../earlier/average", r"expected 12 blocks of 12 heads, found 1 blocks") for job in (audioset, train)),
    ],
    ids=lambda value: value.__name__ if isinstance(value, ModuleType) else None,
)
def test_every_command_checks_its_weights_first(
    job: ModuleType, init: str, message: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    preset = job.COMMAND_LINE.parse(["audioset_full"] if job in (audioset, train) else [])
    settings: dict[str, Any] = {"root": "../store", "train": dataclasses.replace(preset.train, init=init)}
    if hasattr(preset, "archive"):
        settings["archive"] = "http://127.0.0.1:9/never-fetched.zip"
    with pytest.raises(WeightsError, match=message):
        job.COMMAND_LINE.load(preset)(dataclasses.replace(preset, **settings))
    assert not (tmp_path / "store" / "shards").exists()


def test_own_sounds_are_read_only_after_checking_the_weights(weights: str) -> None:
    config = finetune.COMMAND_LINE.parse(["--data", "no-such-table.csv", "--init", "../earlier/nothing.pth"])
    with pytest.raises(WeightsError, match=r"expected weights at .*/earlier/nothing\.pth, found nothing"):
        finetune.COMMAND_LINE.load(config)(config)
