"""ESC-50: a training for each of its five folds."""

import csv
import dataclasses
from pathlib import Path

from jobs.config import ESC50Config
from jobs.launch.cli import resolve_root
from jobs.launch.folds import train_folds
from jobs.launch.initial_weights import open_initial_weights
from jobs.launch.recordings import official_folder
from pipeline.errors import InputError
from pipeline.recordings.tables import Recording
from pipeline.store.storage import Store

CLIP_MS = 5_000
TABLE = "meta/esc50.csv"


def esc50(config: ESC50Config) -> None:
    """Train and test on each fold, and print the accuracy of each and their mean."""
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    store = Store(resolve_root(config.root))
    recordings, classes = read_esc50(official_folder(config, store, TABLE))
    train_folds(config, recordings, classes, store)


def read_esc50(folder: Path) -> tuple[list[Recording], list[str]]:
    """Read the official folder; each fold is a split. Raises InputError if it is another."""
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        name_of = {int(row["target"]): row["category"] for row in rows}
        recordings = [
            Recording(folder / "audio" / row["filename"], (row["category"],), f"fold{int(row['fold'])}", 0, CLIP_MS)
            for row in rows
        ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"expected ESC-50's {TABLE} with filename,fold,target,category in {folder}, found: {error!r}"
        ) from error
    missing = [recording.path.name for recording in recordings if not recording.path.is_file()]
    if missing or not recordings:
        raise InputError(
            f"{folder / TABLE} names {len(recordings)} files; {len(missing)} are not in {folder / 'audio'}"
            f" ({', '.join(missing[:3])}): unpack the archive again"
        )
    return recordings, [name_of[target] for target in sorted(name_of)]
