"""Preprocess as a tracked MLflow run."""

import logging
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ast_model.config import flatten
from ast_model.tracking.run import TrackedRun, start_run
from ast_model.tracking.server import PREPROCESSING
from ast_model.tracking.tags import ROOT_TAG
from jobs.preprocessing.report import save_report
from pipeline.config import PreprocessConfig
from pipeline.errors import CorruptError, StoreError
from pipeline.preprocess import PreprocessReport, preprocess
from pipeline.records import FailureCategory
from pipeline.snapshots.snapshot import Snapshot
from pipeline.snapshots.status import plot_failures
from pipeline.store.storage import Store

log = logging.getLogger(__name__)


def preprocess_tracked(config: PreprocessConfig, store: Store, run: str) -> tuple[Snapshot, PreprocessReport]:
    """Preprocess as a run in MLflow's preprocessing experiment. The run gets a final status even on errors."""
    tracker = start_run(store, run, {ROOT_TAG: store.root}, PREPROCESSING)
    with tracker.end_on_exit():
        tracker.log_params(flatten(config))
        snapshot, report = preprocess(config, store)
        log_preprocessing(tracker, snapshot, report)
    return snapshot, report


def check_all_made(report: PreprocessReport) -> None:
    """Raise StoreError if any shard could not be written, so that the command exits with code 1."""
    if report.errors:
        shard, error = next(iter(report.errors.items()))
        raise StoreError(
            f"{len(report.errors)} shards could not be written; a rerun retries them. The first, {shard}: {error}"
        )


def summarise(snapshot: Snapshot, report: PreprocessReport) -> dict[str, Any]:
    """Return a run's counts, for notifications."""
    return {
        "snapshot": snapshot.snapshot_id,
        "planned": report.num_planned,
        "written": report.num_written,
        "failed": {str(reason): count for reason, count in report.failures.items()},
        "throttled": report.num_throttled,
        "shards_not_made": len(report.errors),
        "is_complete": report.is_complete,
    }


def log_preprocessing(tracker: TrackedRun, snapshot: Snapshot, report: PreprocessReport) -> None:
    """Log the results of a run, the yield of the data set, and the report."""
    metrics: dict[str, float] = {
        "attempted": report.num_planned,
        "written": report.num_written,
        "throttled": report.num_throttled,
        "bytes": report.num_bytes,
        "seconds": report.seconds,
        "clips_per_s": report.num_decided / report.seconds if report.seconds else 0.0,
        "shards_not_made": len(report.errors),
        **{name.replace("num_", "changes/"): count for name, count in asdict(report.changes).items()},
    }
    metrics |= {f"failed/{kind}": 0 for kind in FailureCategory}
    for reason, count in report.failures.items():
        metrics[f"failed/{reason.category}"] += count
        metrics[f"reason/{reason}"] = count
    for split, counts in snapshot.manifest["split_counts"].items():
        metrics[f"yield/{split}"] = counts["written"] / counts["planned"]
        metrics[f"clips/{split}"] = counts["written"]
    tracker.log_metrics(metrics, step=0)
    tracker.log_data(snapshot, "preprocessing")
    if report.num_planned:  # for all of AudioSet, a report takes as long as a rerun without work
        log_report(tracker, snapshot)
    if report.failures:
        with tempfile.TemporaryDirectory() as folder:
            plot_failures(report.failures, report.num_written).savefig(f"{folder}/failures.png", dpi=90)
            tracker.log_files(Path(folder), "failures")


def log_report(tracker: TrackedRun, snapshot: Snapshot) -> None:
    """Log the report of a snapshot as HTML and JSON, or a warning if the store can't be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_report(Path(folder) / "report.html", snapshot)
        except (
            CorruptError,
            StoreError,
        ) as error:  # the snapshot is published, so don't fail its run
            log.warning("no report of snapshot %s: %s", snapshot.snapshot_id, error)
            return
        tracker.log_files(Path(folder), "report")
