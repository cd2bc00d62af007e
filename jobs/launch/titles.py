"""What a run is called, and how it describes itself, so that a list of runs tells them apart."""

import dataclasses
from typing import Protocol

from ast_model import recipes
from ast_model.config import ASTConfig, TrainConfig, flatten
from jobs.launch.provenance import command
from pipeline.snapshots.snapshot import Snapshot

MAX_TITLE = 100


class RunConfig(Protocol):
    """What a job's config has for a run."""

    @property
    def preset(self) -> str: ...
    @property
    def model(self) -> ASTConfig: ...
    @property
    def train(self) -> TrainConfig: ...


def run_params(config: RunConfig, model: ASTConfig) -> dict[str, str]:
    """Return a run's parameters: the same names from whichever job."""
    return {"preset": config.preset, **_flat(model, config.train)}


def differences(config: RunConfig, model: ASTConfig) -> dict[str, str]:
    """Return what differs from the preset. The number of classes follows from the data."""
    recipe = getattr(recipes, config.preset, None)
    if recipe is None:
        return {}
    preset = recipe()
    usual = _flat(dataclasses.replace(preset.model, num_classes=model.num_classes), preset.train)
    return {key: value for key, value in _flat(model, config.train).items() if usual.get(key) != value}


def run_title(config: RunConfig, model: ASTConfig, snapshot: Snapshot, run: str) -> str:
    """Name recipe, data and difference: `demo · learning_rate=0.0001 · data 3f9a12 · ab12`."""
    changed = " ".join(f"{key.split('.')[-1]}={value}" for key, value in differences(config, model).items())
    if len(changed) > MAX_TITLE:
        changed = changed[: MAX_TITLE - 1] + "…"
    return " · ".join([config.preset, changed or "as preset", f"data {snapshot.snapshot_id[:6]}", run.split("-")[-1]])


def describe_run(config: RunConfig, model: ASTConfig, snapshot: Snapshot, run: str) -> str:
    """Say in Markdown what a run is, how it was started and how to go on with it."""
    counts = ", ".join(f"{count} {split}" for split, count in snapshot.stats["num_clips"].items())
    changed = ", ".join(f"`{key}={value}`" for key, value in differences(config, model).items())
    store = snapshot.store
    return f"""AST trained by the recipe **{config.preset}** on snapshot `{snapshot.snapshot_id}` ({counts} clips, \
{len(snapshot.labels)} classes).

- differs from the preset: {changed or "in nothing"}
- started by `{command()}`
- go on with it: the same command and `--resume {run}`
- checkpoints: `{store.url(f"runs/{run}")}`
"""


def _flat(model: ASTConfig, train: TrainConfig) -> dict[str, str]:
    return flatten(train, "train.") | flatten(model, "model.")
