"""Read UrbanSound8K's official folder."""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import InputError, describe, quote
from pipeline.recordings.tables import LabelledClip, check_files

CLIP_MS = 4_000
TABLE = "metadata/UrbanSound8K.csv"


def read_urbansound8k(folder: Path) -> tuple[list[LabelledClip], list[str]]:
    """Return the clips, with each fold as a split, and the classes by number.

    Raises InputError for another folder, and for folds that share a recording.
    """
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        name_of = {int(row["classID"]): row["class"] for row in rows}
        clips = [
            LabelledClip(
                folder / "audio" / f"fold{int(row['fold'])}" / row["slice_file_name"],
                (name_of[int(row["classID"])],),
                f"fold{int(row['fold'])}",
                0,
                CLIP_MS,
            )
            for row in rows
        ]
        _check_folds(rows)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"expected UrbanSound8K's {TABLE} with slice_file_name,fsID,fold,classID,class in {folder}, found:"
            f" {describe(error)}"
        ) from error
    if len({(row["classID"], row["class"]) for row in rows}) > len(name_of):
        raise InputError(
            f"{folder / TABLE}: expected one class for each classID, found several; unpack the archive again"
        )
    check_files(clips, folder / TABLE, folder / "audio")
    return clips, [name_of[number] for number in sorted(name_of)]


def _check_folds(rows: Sequence[Mapping[str, str]]) -> None:
    """Raise InputError if two folds share a recording, since a model would be tested on sounds from its training."""
    folds_of: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        folds_of[row["fsID"]].add(int(row["fold"]))
    if leaks := {name: sorted(folds) for name, folds in folds_of.items() if len(folds) > 1}:
        name, folds = next(iter(leaks.items()))
        raise InputError(
            f"{TABLE}: expected all clips of a recording in one fold, found {len(leaks)} recordings in several, such as"
            f" fsID {quote(name)} in {', '.join(map(str, folds))}; use the official folds"
        )
