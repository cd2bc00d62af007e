"""Preprocess local files of published data sets and the user's own sounds."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ast_model.tracking.server import connect
from jobs.command_line.run_names import new_run_name
from jobs.preprocessing.tracked import preprocess_tracked
from pipeline.config import PreprocessConfig
from pipeline.metadata import stored_splits
from pipeline.recordings.tables import MEDIA_TABLE, LabelledClip, write_tables
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import segments_file
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

CLIPS_PER_SHARD = 500
"""Shard size, small enough that a set of a few thousand clips occupies several cores."""


def preprocess_local_clips(clips: Sequence[LabelledClip], classes: Sequence[str], store: Store) -> Snapshot:
    """Write tables in AudioSet's format, preprocess the clips, and log the number of clips per split."""
    connect(store)
    folder = Path(store.path("tables") if store.is_local else tempfile.mkdtemp())
    splits = write_tables(clips, classes, folder)
    for split in set(stored_splits(store)) - set(splits):  # preprocessing keeps the clips of earlier splits
        store.remove(segments_file(split))
    config = PreprocessConfig(
        metadata=str(folder), media=(str(folder / MEDIA_TABLE),), splits=splits, clips_per_shard=CLIPS_PER_SHARD
    )
    snapshot, _ = preprocess_tracked(config, store, new_run_name("preprocess"))
    for split, counts in snapshot.manifest["split_counts"].items():
        failed = ", ".join(f"{count} {reason}" for reason, count in counts["failed"].items())
        log.info("%s: %d clips of %d%s", split, counts["written"], counts["planned"], f" ({failed})" if failed else "")
    return snapshot
