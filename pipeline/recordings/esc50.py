"""Read ESC-50's official folder."""

import csv
from pathlib import Path

from pipeline.errors import InputError
from pipeline.recordings.tables import LabelledClip, check_files

CLIP_MS = 5_000
TABLE = "meta/esc50.csv"


def read_esc50(folder: Path) -> tuple[list[LabelledClip], list[str]]:
    """Return the clips, and the classes by target. Each fold is a split. Raises InputError if the folder is not
    ESC-50's."""
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        name_of = {int(row["target"]): row["category"] for row in rows}
        clips = [
            LabelledClip(folder / "audio" / row["filename"], (row["category"],), f"fold{int(row['fold'])}", 0, CLIP_MS)
            for row in rows
        ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"expected ESC-50's {TABLE} with filename,fold,target,category in {folder}, found: {error!r}"
        ) from error
    check_files(clips, folder / TABLE, folder / "audio")
    return clips, [name_of[target] for target in sorted(name_of)]
