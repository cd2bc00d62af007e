"""Make titles and descriptions that distinguish runs in a list."""

import dataclasses
from typing import Protocol

from ast_model import recipes
from ast_model.config import ASTConfig, TrainConfig, flatten
from ast_model.config.sizes import size_name
from jobs.command_line.program import command
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import RunFiles

MAX_CHANGES = 15
"""Maximum characters for changed settings. MLflow's charts show 20 characters of a title, and 5 show the run."""
MAX_INIT = 24
"""Maximum characters for the name of the initial weights."""
HEAD = "head"
"""Last word in the names of presets that fit only a head."""
SHORT_NAMES = {
    "train.learning_rate": "lr",
    "train.seed": "seed",
    "train.global_batch_size": "batch",
    "train.augment.mixup_probability": "mixup",
    "train.weight_decay": "wd",
    "train.regularise.drop_path": "drop",
    "train.regularise.patchout_freq": "fpatch",
    "train.regularise.patchout_time": "tpatch",
    "train.augment.max_freq_mask_bins": "fmask",
    "train.augment.max_time_mask_frames": "tmask",
    "train.layer_decay": "ldecay",
    "train.average_last_epochs": "avg",
    "train.num_epochs": "epochs",
    "train.draws_per_epoch": "draws",
}
"""Short names of settings for titles. Settings that users vary most often come first."""


class RunSettings(Protocol):
    """Settings for a command that trains."""

    @property
    def preset(self) -> str: ...
    @property
    def data_name(self) -> str: ...
    @property
    def model(self) -> ASTConfig: ...
    @property
    def train(self) -> TrainConfig: ...


def run_params(config: RunSettings, model: ASTConfig) -> dict[str, str]:
    """Return a run's parameters, with the same names for all commands."""
    return {"preset": config.preset, **_flat(model, config.train)}


def differences(config: RunSettings, model: ASTConfig) -> dict[str, str]:
    """Return settings that differ from the preset. Ignores the number of classes, which follows from the data."""
    recipe = getattr(recipes, config.preset, None)
    if recipe is None:
        return {}
    preset = recipe()
    usual = _flat(dataclasses.replace(preset.model, num_classes=model.num_classes), preset.train)
    return {key: value for key, value in _flat(model, config.train).items() if usual.get(key) != value}


def run_title(config: RunSettings, model: ASTConfig, snapshot: Snapshot, run: str) -> str:
    """Return a run's title: `ab12 lr 0.0003 · tiny · random · full · demo 3f9a12`.

    A title shows the end of the run's name, changed settings, size, initial weights, method and data. The end of the
    name comes first, because MLflow's charts show only 20 characters.
    """
    differing = differences(config, model)
    order = sorted(differing, key=list(SHORT_NAMES | differing).index)
    changes = " ".join(
        f"{SHORT_NAMES.get(name, name.split('.')[-1])} {differing[name].removesuffix('.0')}" for name in order
    )
    if len(changes) > MAX_CHANGES:
        changes = f"{changes[: MAX_CHANGES - 1].rstrip()}…"
    snapshot_id = "-".join(part[:6] for part in snapshot.snapshot_id.split("-"))
    start = f"init {_short_init(config.train.init)}" if config.train.init else "random"
    method = HEAD if is_head_only(config.preset) else "full"
    parts = [f"{run.split('-')[-1]} {changes}".strip(), size_name(model), start, method]
    return " · ".join([*parts, f"{config.data_name} {snapshot_id}"])


def is_head_only(preset: str) -> bool:
    """Return True if runs of this preset fit only a head and thus have nothing to resume."""
    return preset.split("_")[-1] == HEAD


def _short_init(init: str) -> str:
    """Shorten `init` to a hub name, a checkpoint's run, or the name of a file or folder."""
    name = init
    if "/runs/" in init:
        name = init.split("/runs/")[1].split("/")[0]
    elif init.count("/") != 1:
        name = init.rstrip("/").rsplit("/", 1)[-1]
    return name if len(name) <= MAX_INIT else f"{name[: MAX_INIT - 1]}…"


def describe_run(config: RunSettings, model: ASTConfig, snapshot: Snapshot, run: str) -> str:
    """Describe a run in Markdown: recipe, data, command and how to resume it."""
    counts = ", ".join(f"{count} {split}" for split, count in snapshot.stats["num_clips"].items())
    changed = ", ".join(f"`{key}={value}`" for key, value in differences(config, model).items())
    store = snapshot.store
    num_excluded = snapshot.manifest.get("selection", {}).get("num_excluded", {})
    excluded = ", ".join(f"{count} by `{expression}`" for expression, count in num_excluded.items())
    return f"""AST trained by the recipe **{config.preset}** on snapshot `{snapshot.snapshot_id}` ({counts} clips, \
{len(snapshot.labels)} classes).

- changed settings: {changed or "none"}
- excluded training clips: {excluded or "none"}
- started by `{command()}`
- to resume: the same command with `--resume {run}`
- checkpoints: `{store.url(RunFiles(run).folder)}`
"""


def _flat(model: ASTConfig, train: TrainConfig) -> dict[str, str]:
    return flatten(train, "train.") | flatten(model, "model.")
