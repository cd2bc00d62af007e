"""Cross-validate over official folds, with one child run per fold and a parent run for the summary."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ast_model.tracking.run import TrackedRun, continue_run, start_run
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import resolve_root
from jobs.command_line.run_names import new_run_name
from jobs.datasets.local_clips import preprocess_local_clips
from jobs.datasets.official import read_dataset
from jobs.datasets.settings import FoldsConfig
from jobs.training.initial_weights import open_initial_weights
from jobs.training.provenance import provenance
from jobs.training.runs import run_exists
from jobs.training.start_or_resume import start_or_resume
from jobs.training.titles import run_params, run_title
from pipeline.cluster.session import ray_session
from pipeline.errors import ConfigError, MismatchError, NoClipsError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import FOLDS_RECORD, RUNS, RunFiles, name_in
from pipeline.store.storage import Store

INTRODUCTION = "Cross-validation with one child run per fold.\n\n"


def train_folds(config: FoldsConfig) -> None:
    """Train and test on each fold. Prints the accuracies and their mean, and stores them as {name}.json.

    Fold 1 is the split `fold1`, and so on.
    """
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    store = Store(resolve_root(config.root))
    clips, classes = read_dataset(config, store)
    with ray_session():
        snapshot = preprocess_local_clips(clips, classes, store)
        check_folds(snapshot, config)
        run, parent = open_parent(config, snapshot)
        with parent.end_on_exit():
            histories = [train_fold(config_of_fold(config, fold), snapshot, run, parent) for fold in config.folds]
            result = {"folds": config.folds, **choose_epoch(histories, config.choose)}
            store.write_json(f"{config.dataset.name}.json", result | {"run": run, "snapshot": snapshot.snapshot_id})
            log_result(parent, result)
    print("\n".join(describe_result(result)))


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


def open_parent(config: FoldsConfig, snapshot: Snapshot) -> tuple[str, TrackedRun]:
    """Start the parent run of all folds or resume `config.resume`. Returns its name and the run.

    Raises ConfigError if the run to resume is missing, MismatchError if it trains on another snapshot.
    """
    store = snapshot.store
    if config.resume:
        run = re.sub(
            r"-fold\d+$", "", config.resume
        )  # the message of a stopped fold suggests --resume with the fold's name
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


def train_fold(config: FoldsConfig, snapshot: Snapshot, parent_name: str, parent: TrackedRun) -> list[Metrics]:
    """Return the metrics of a fold's epochs. Trains or resumes the fold unless it is finished."""
    run, store = f"{parent_name}-{config.train.eval_split}", snapshot.store
    if store.exists(RunFiles(run).history):
        return store.read_json(RunFiles(run).history)
    config = dataclasses.replace(config, resume=run if run_exists(run, store) else "")
    return start_or_resume(config, snapshot, run, parent)[1]


def choose_epoch(histories: Sequence[Sequence[Metrics]], choose: str) -> dict:
    """Choose one epoch for all folds. Returns the folds' accuracies, their mean, and how the epoch was chosen."""
    curves = np.array([[epoch["eval/accuracy"] for epoch in each if "eval/accuracy" in epoch] for each in histories])
    last = curves.shape[1]
    epoch = last if choose == "last" else int(curves.mean(axis=0).argmax()) + 1
    how = f"epoch {epoch} of {last}, the last one"
    if choose != "last":
        how = f"epoch {epoch} of {last}, chosen by the mean accuracy on the test folds: optimistic"
    accuracies = curves[:, epoch - 1]
    return {
        "accuracies": accuracies.tolist(),
        "accuracy": float(accuracies.mean()),
        "epoch": epoch,
        "how": how,
        "mean_after_epoch": curves.mean(axis=0).tolist(),
    }


def log_result(parent: TrackedRun, result: Mapping[str, Any]) -> None:
    """Log the mean accuracy of each epoch and the accuracies of the chosen epoch to the parent run."""
    for epoch, mean in enumerate(result["mean_after_epoch"], start=1):
        parent.log_metrics({"eval/accuracy": mean}, epoch)
    folds = {f"accuracy/fold{fold}": value for fold, value in zip(result["folds"], result["accuracies"], strict=True)}
    parent.log_metrics({"accuracy": result["accuracy"], **folds}, result["epoch"])
    parent.describe(INTRODUCTION + "\n".join(f"- {line}" for line in describe_result(result)))


def describe_result(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"fold {fold}   accuracy {value:.4f}" for fold, value in zip(result["folds"], result["accuracies"], strict=True)
    ]
    return [*lines, f"mean     accuracy {result['accuracy']:.4f}   ({result['how']})"]
