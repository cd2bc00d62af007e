"""Names under which the service presents models."""

import dataclasses
from pathlib import Path

import pytest

from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, save_checkpoint
from ast_model.config import ASTConfig
from ast_model.inference import Tagger
from ast_model.model import AST
from jobs.service.serve import name_model
from pipeline.store.storage import Store

TITLE = "ab12 · nano · random · full · dogs 3f9a12"


def save(folder: Path, **facts: str) -> str:
    """Save a checkpoint of a nano model with facts about its run. Return its folder."""
    config = ASTConfig.nano(num_classes=2, num_frames=64)
    labels = {"mids": ("a", "b"), "names": ("dog", "cat")}
    description = {"model": dataclasses.asdict(config), "train": {}, "labels": labels, "mean": 0.0, "std": 1.0, **facts}
    checkpoint = Checkpoint(LoopState(1), AST(config).state_dict(), description=description)
    return str(folder / save_checkpoint(Store(str(folder)), "weights", checkpoint))


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"run": "finetune-1-ab12", "title": TITLE}, TITLE),
        ({"run": "finetune-1-ab12"}, "finetune-1-ab12"),
        ({}, "epoch-0001-step-00000000 · nano"),
    ],
)
def test_checkpoint_is_named_by_its_run_and_never_by_its_path(tmp_path: Path, facts: dict[str, str], name: str) -> None:
    checkpoint = save(tmp_path, **facts)
    tagger = Tagger.load(checkpoint, device="cpu")
    assert name_model(checkpoint, tagger) == name
    assert name_model("models:/audioset-ast@champion", tagger) == (
        f"models:/audioset-ast@champion · {facts.get('title') or facts.get('run') or 'nano'}"
    )
