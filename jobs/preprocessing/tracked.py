"""The preprocessing as a job: the miniature's media if they are asked for, and a tracked run in MLflow."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from ast_model.config import flatten
from ast_model.tracking.run import TrackedRun, start_run
from ast_model.tracking.server import PREPROCESSING
from ast_model.tracking.tags import ROOT_TAG
from jobs.command_line.settings import MINIATURE
from jobs.preprocessing.report import save_report
from pipeline.config import PreprocessConfig
from pipeline.errors import CorruptError, StoreError
from pipeline.miniature import make_miniature, serve_miniature
from pipeline.preprocess import PreprocessReport, preprocess
from pipeline.progress import show_progress
from pipeline.records import FailureCategory
from pipeline.snapshots.snapshot import Snapshot
from pipeline.snapshots.status import plot_failures
from pipeline.store.storage import Store

log = logging.getLogger(__name__)


@contextmanager
def with_miniature_media(data: PreprocessConfig, store: Store) -> Iterator[PreprocessConfig]:
    """Make and serve the miniature if it is asked for; else the media are where the config says."""
    if data.metadata != MINIATURE:
        yield data
        return
    home = Path(store.path("")) if store.is_local else Path(tempfile.gettempdir())
    with show_progress("make the miniature", 1, "clips") as progress:
        miniature = make_miniature(home / MINIATURE, on_progress=progress.reach)
    with serve_miniature(miniature.folder) as server:
        yield replace(data, metadata=str(miniature.metadata_folder), media=data.media or server.media_address)


def preprocess_tracked(config: PreprocessConfig, store: Store, run: str) -> tuple[Snapshot, PreprocessReport]:
    """Preprocess as a tracked run in an experiment of its own, which ends with a status whatever happens."""
    tracker = start_run(store, run, {ROOT_TAG: store.root}, PREPROCESSING)
    with tracker.ending():
        tracker.log_params(flatten(config))
        snapshot, report = preprocess(config, store)
        log_preprocessing(tracker, snapshot, report)
    return snapshot, report


def check_all_made(report: PreprocessReport) -> None:
    """Raise StoreError, so that the command ends with exit code 1, if shards could not be made."""
    if report.errors:
        shard, error = next(iter(report.errors.items()))
        raise StoreError(
            f"{len(report.errors)} shards could not be made; a rerun tries them again. The first, {shard}: {error}"
        )


def log_preprocessing(tracker: TrackedRun, snapshot: Snapshot, report: PreprocessReport) -> None:
    """Log what a run did, and how far the data set is."""
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
    if report.num_planned:
        log_report(tracker, snapshot)
    if report.failures:
        with tempfile.TemporaryDirectory() as folder:
            plot_failures(report.failures, report.num_written).savefig(f"{folder}/failures.png", dpi=90)
            tracker.log_files(Path(folder), "failures")


def log_report(tracker: TrackedRun, snapshot: Snapshot) -> None:
    """Log the page of what is in a snapshot, and its JSON.

    A rerun that had nothing to do has none: at AudioSet's size a page takes as long as such a rerun.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            save_report(Path(folder) / "report.html", snapshot)
        except (CorruptError, StoreError) as error:  # the data are published, whatever can be said of them
            log.warning("no report of snapshot %s: %s", snapshot.snapshot_id, error)
            return
        tracker.log_files(Path(folder), "report")
