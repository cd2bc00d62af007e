"""ESC-50: a training for each of its five folds."""

import csv
from pathlib import Path

from jobs.datasets.folds import check_files, train_folds
from jobs.datasets.settings import ESC50Config
from pipeline.errors import InputError
from pipeline.recordings.tables import Recording

CLIP_MS = 5_000
TABLE = "meta/esc50.csv"


def esc50(config: ESC50Config) -> None:
    """Train and test on each fold, and print the accuracy of each and their mean."""
    train_folds(config, TABLE, read_esc50)


def read_esc50(folder: Path) -> tuple[list[Recording], list[str]]:
    """Read the official folder; each fold is a split. Raises InputError if the folder is not it."""
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
    check_files(recordings, folder / TABLE, folder / "audio")
    return recordings, [name_of[target] for target in sorted(name_of)]
