"""From recordings to a snapshot and trainings on it: what the jobs for other data than AudioSet share."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ast_model.tracking_server import check_server, tracking_uri
from ast_model.train import Metrics
from jobs.ray_train import RayConfig, train_on_ray
from jobs.runs import RunConfig, RunSettings, begin_run, ending_tracked, new_run_name
from jobs.visit import preprocess_tracked
from pipeline.config import PreprocessConfig
from pipeline.recordings import MEDIA_TABLE, Recording, write_tables
from pipeline.snapshot import Snapshot
from pipeline.storage import Store

log = logging.getLogger(__name__)

CLIPS_PER_SHARD = 500


class RayRunConfig(RunConfig, Protocol):
    """What a job's config has for a run on Ray."""

    @property
    def ray(self) -> RayConfig: ...


def convert(recordings: Sequence[Recording], classes: Sequence[str], store: Store) -> Snapshot:
    """Write the tables of recordings and take them the way of AudioSet; say what could not be read."""
    check_server(tracking_uri(store))
    folder = Path(store.path("tables") if store.is_local else tempfile.mkdtemp())
    splits = write_tables(recordings, classes, folder)
    config = PreprocessConfig(
        metadata=str(folder), media=str(folder / MEDIA_TABLE), splits=splits, clips_per_shard=CLIPS_PER_SHARD
    )
    snapshot, _ = preprocess_tracked(config, store, new_run_name("preprocess"))
    for split, book in snapshot.manifest["books"].items():
        failed = ", ".join(f"{count} {reason}" for reason, count in book["failed"].items())
        log.info("%s: %d clips of %d%s", split, book["written"], book["planned"], f" ({failed})" if failed else "")
    return snapshot


def train_tracked(config: RayRunConfig, snapshot: Snapshot) -> tuple[RunSettings, list[Metrics]]:
    """Train a new run; return it with the metrics of each epoch. Needs a running Ray."""
    settings = begin_run(config, snapshot, new_run_name(config.preset))
    with ending_tracked(settings):
        return settings, train_on_ray(settings, config.ray)
