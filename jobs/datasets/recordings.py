"""From recordings to a snapshot and trainings on it: the parts that jobs for other data than AudioSet share."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.evaluation.ensemble import score_each
from ast_model.tracking.run import TrackedRun
from ast_model.tracking.server import connect
from ast_model.training.step_metrics import Metrics
from jobs.command_line.settings import RayConfig
from jobs.datasets.settings import FSD50KConfig, PublishedConfig, SpeechCommandsConfig
from jobs.preprocessing.tracked import preprocess_tracked
from jobs.training.ray_train import train_on_ray
from jobs.training.runs import RunConfig, TrackedJob, begin_run, ending_tracked, new_run_name, resume_run
from pipeline.cluster import ray_session
from pipeline.config import PreprocessConfig
from pipeline.recordings.download import fetch_archive, unpack
from pipeline.recordings.tables import MEDIA_TABLE, Recording, write_tables
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

CLIPS_PER_SHARD = 500


class RayRunConfig(RunConfig, Protocol):
    """Settings of a job that trains on Ray."""

    @property
    def resume(self) -> str: ...
    @property
    def ray(self) -> RayConfig: ...


def official_folder(config: PublishedConfig, store: Store, mark: str) -> Path:
    """Return the set's folder, after fetching it if need be: the one that has the file `mark`."""
    if config.data:
        return Path(config.data)
    home = download_folder(store)
    archive = fetch_archive(config.archive, home / config.archive.rsplit("/", 1)[-1], config.digest)
    folder = unpack(archive, home / config.preset)
    return next((found.parents[mark.count("/")] for found in folder.rglob(mark)), folder)


def download_folder(store: Store) -> Path:
    """Return where archives are kept: in the store, unless that is remote."""
    return Path(store.path("download")) if store.is_local else Path.home() / ".cache/audioset-ast"


def convert(recordings: Sequence[Recording], classes: Sequence[str], store: Store) -> Snapshot:
    """Write recordings as tables in AudioSet's format, preprocess these, and log how many clips each split has."""
    connect(store)
    folder = Path(store.path("tables") if store.is_local else tempfile.mkdtemp())
    splits = write_tables(recordings, classes, folder)
    config = PreprocessConfig(
        metadata=str(folder), media=str(folder / MEDIA_TABLE), splits=splits, clips_per_shard=CLIPS_PER_SHARD
    )
    snapshot, _ = preprocess_tracked(config, store, new_run_name("preprocess"))
    for split, counts in snapshot.manifest["split_counts"].items():
        failed = ", ".join(f"{count} {reason}" for reason, count in counts["failed"].items())
        log.info("%s: %d clips of %d%s", split, counts["written"], counts["planned"], f" ({failed})" if failed else "")
    return snapshot


def train_tracked(
    config: RayRunConfig,
    snapshot: Snapshot,
    run: str = "",
    parent: TrackedRun | None = None,
    faster: Sequence[str] = (),
) -> tuple[TrackedJob, list[Metrics]]:
    """Train a new run, of a new name unless one is given, or resume `config.resume`; needs a running Ray.

    Returns it with the metrics of each epoch.
    """
    if config.resume:
        job = resume_run(config.resume, snapshot.store, config)
    else:
        job = begin_run(config, snapshot, run or new_run_name(config.preset), parent)
    with ending_tracked(job):
        return job, train_on_ray(job, config.ray, faster)


def train_and_test(
    config: SpeechCommandsConfig | FSD50KConfig,
    recordings: Sequence[Recording],
    classes: Sequence[str],
    store: Store,
    metric: str,
) -> dict[str, Any]:
    """Train on the split `train`, choose an epoch on `valid`, score `test`, and keep the result as {preset}.json.

    metric: `accuracy` or `mAP`.
    """
    with ray_session():
        snapshot = convert(recordings, classes, store)
        job, history = train_tracked(config, snapshot)
    result = _score_held_out(config, job, snapshot, history, metric)
    store.write_json(f"{config.preset}.json", result)
    return result


def _score_held_out(
    config: SpeechCommandsConfig | FSD50KConfig,
    job: TrackedJob,
    snapshot: Snapshot,
    history: Sequence[Metrics],
    metric: str,
) -> dict[str, Any]:
    """Score the split `test`, on which nothing was chosen, with the chosen epoch's checkpoint."""
    folder, epochs = f"runs/{job.run}/checkpoints", [each for each in history if f"eval/{metric}" in each]
    best = best_checkpoint(snapshot.store, folder)
    chosen = epochs[-1] if config.choose == "last" else max(epochs, key=lambda each: each[f"eval/{metric}"])
    name = best[0] if best and config.choose != "last" else list_checkpoints(snapshot.store, folder)[-1]
    (member,) = score_each((snapshot.store.url(name),), snapshot, "test", config.train.clips_at_a_time)
    return {
        "valid": chosen[f"eval/{metric}"],
        "test": member.evaluation.figures[metric],
        "how": f"epoch {chosen['epoch']:.0f} of {len(epochs)}, {config.choose}",
        "checkpoint": name,
        "snapshot": snapshot.snapshot_id,
    }
