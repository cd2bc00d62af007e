"""Cross-validate over official folds, with one child run per fold and a parent run for the summary."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from ast_model.tracking.run import TrackedRun, continue_run, start_run
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import resolve_root
from jobs.command_line.run_names import new_run_name
from jobs.datasets.fold_results import INTRODUCTION, choose_epoch
from jobs.datasets.local_clips import preprocess_local_clips
from jobs.datasets.model_shape import adopt_initial_shape, log_classes
from jobs.datasets.official import read_dataset
from jobs.datasets.settings import FoldsConfig
from jobs.training.initial_weights import open_initial_weights
from jobs.training.provenance import provenance
from jobs.training.runs import run_exists
from jobs.training.start_or_resume import RayRunSettings, start_or_resume
from jobs.training.titles import run_params, run_title
from pipeline.cluster.session import ray_session
from pipeline.errors import ConfigError, MismatchError, NoClipsError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import FOLDS_RECORD, RUNS, RunFiles, name_in
from pipeline.store.storage import Store

FOLD_SUFFIX = re.compile(r"-fold[\w-]+$")


class FoldSettings(RayRunSettings, Protocol):
    """Settings for training on some folds, as a dataclass with the fields of `RayRunSettings`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def train_folds(config: FoldsConfig) -> None:
    """Train and test on each fold. Prints the accuracies and their mean, and stores them as {name}.json.

    Fold 1 is the split `fold1`, and so on.
    """
    config = adopt_initial_shape(config)
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    store = Store(resolve_root(config.root))
    clips, classes = read_dataset(config, store)
    log_classes(config, classes)
    with ray_session():
        snapshot = preprocess_local_clips(clips, classes, store)
        check_folds(snapshot, config)
        run, parent = open_parent(config, snapshot)
        with parent.end_on_exit():
            configs = [config_of_fold(config, fold) for fold in config.folds]
            histories = {each.train.eval_split: train_fold(each, snapshot, run, parent) for each in configs}
            results = choose_epoch(histories, config.choose)
            made_by = {"run": run, "snapshot": snapshot.snapshot_id}
            store.write_json(f"{config.dataset.name}.json", results.to_json() | made_by)
            results.log(parent)
    print("\n".join(results.lines()))


def config_of_fold(config: FoldsConfig, fold: int) -> FoldsConfig:
    """Return the settings for one fold: test on it, train on all other folds."""
    others = tuple(f"fold{other}" for other in range(1, config.dataset.num_folds + 1) if other != fold)
    train = dataclasses.replace(config.train, train_splits=others, eval_split=f"fold{fold}")
    return dataclasses.replace(config, train=train)


def check_folds(snapshot: Snapshot, config: FoldsConfig) -> None:
    """Raise NoClipsError if a fold contains all clips of a class, which leaves none to train on."""
    if config.train.allow_empty_classes:
        return
    for fold in config.folds:
        counts = snapshot.class_counts(config_of_fold(config, fold).train.train_splits)
        empty = [name for name, count in zip(snapshot.labels.names, counts, strict=True) if count == 0]
        if empty:
            raise NoClipsError(
                f"can't test fold {fold}, because it contains all clips of {', '.join(empty[:5])} and leaves none to"
                " train on. Spread them over the folds, omit the fold from --folds, or set --allow-empty-classes"
            )


def open_parent(config: RayRunSettings, snapshot: Snapshot) -> tuple[str, TrackedRun]:
    """Start the parent run of all folds or resume `config.resume`. Returns its name and the run.

    Raises ConfigError if the run to resume is missing, MismatchError if it trains on another snapshot.
    """
    store = snapshot.store
    if config.resume:
        run = FOLD_SUFFIX.sub("", config.resume)  # a stopped fold suggests --resume with its own name
        if not store.exists(RunFiles(run).folds):
            found = ", ".join(name_in(RUNS, name) for name in store.list(RUNS, f"/{FOLDS_RECORD}")[-10:])
            raise ConfigError(f"expected a run of folds named {run} in {store.root}, found {found or 'none'}")
        record = store.read_json(RunFiles(run).folds)
        if record["snapshot"] != snapshot.snapshot_id:
            raise MismatchError(
                f"run {run} trains on snapshot {record['snapshot']}, but the files now give snapshot"
                f" {snapshot.snapshot_id}; restore the files, or start a new run"
            )
        return run, continue_run(store, record["tracking_run"])
    run = new_run_name(config.preset)
    title = run_title(config, config.model, snapshot, run)
    parent = start_run(store, title, {"preset": config.preset, "run": run, "stage": "folds", **provenance()})
    store.write_json(RunFiles(run).folds, {"snapshot": snapshot.snapshot_id, "tracking_run": parent.run_id})
    parent.log_params(run_params(config, config.model))
    parent.log_data(snapshot, "training")
    parent.describe(f"{INTRODUCTION}- resume it: the same command and `--resume {run}`")
    return run, parent


def train_fold(
    config: FoldSettings,
    snapshot: Snapshot,
    parent_name: str,
    parent: TrackedRun,
    initial_metrics: Mapping[str, float] | None = None,
) -> list[Metrics]:
    """Return the metrics of a fold's epochs. Trains or resumes the fold unless it is finished."""
    run, store = f"{parent_name}-{config.train.eval_split}", snapshot.store
    if store.exists(RunFiles(run).history):
        return store.read_json(RunFiles(run).history)
    config = dataclasses.replace(config, resume=run if run_exists(run, store) else "")
    return start_or_resume(config, snapshot, run, parent, initial_metrics)[1]
