"""Read VGGSound's table, and convert it to AudioSet's tables."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError, describe, quote
from pipeline.recordings.tables import make_labels
from pipeline.segments import ID

CLIP_S = 10
SPLITS = ("train", "test")
EXAMPLE = "`---g-f_I2yQ,1,people marching,test`, with quotes around a label that has commas"


@dataclass(frozen=True)
class Row:
    """A row of vggsound.csv."""

    ytid: str
    start_s: int
    label: str
    split: str


def read_vggsound(table: Path) -> list[Row]:
    """Return the rows of the official table, which has no header. Raises InputError with the line of a bad row."""
    rows: list[Row] = []
    first_of: dict[tuple[str, int], Row] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            # Use strict mode, because otherwise an unclosed quote would swallow all following rows.
            reader = csv.reader(file, strict=True)
            for cells in reader:
                row = _read_row(cells, f"{table}, line {reader.line_num}")
                if first_of.setdefault((row.ytid, row.start_s), row) != row:
                    raise InputError(
                        f"{table}, line {reader.line_num}: the clip {row.ytid} from {row.start_s} s appears above with"
                        " another label or split; remove one of the two rows"
                    )
                rows.append(row)
    except csv.Error as error:
        raise InputError(
            f"{table}: expected rows such as {EXAMPLE}, found an unclosed quote, or a quote around a part of a label"
            f" ({describe(error)})"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"can't read {table}: {describe(error)}; expected VGGSound's table in UTF-8") from error
    if missing := set(SPLITS) - {row.split for row in rows}:
        raise InputError(f"{table}: expected clips of the splits train and test, found none of {', '.join(missing)}")
    return rows


def _read_row(cells: Sequence[str], where: str) -> Row:
    found = quote(",".join(cells))
    if len(cells) != 4 or "\n" in cells[2] or not cells[2].strip():
        raise InputError(f"{where}: expected an id, a start, a label and a split, such as {EXAMPLE}, found {found}")
    ytid, start, label, split = (cell.strip() for cell in cells)
    if not ID.fullmatch(ytid) or not (start.isascii() and start.isdecimal()):
        raise InputError(f"{where}: expected a YouTube id and a start in whole seconds, found {found}")
    if split not in SPLITS:
        raise InputError(f"{where}: expected the split train or test, found {quote(split)}")
    return Row(ytid, int(start), label, split)


def write_audioset_tables(rows: Sequence[Row], folder: Path) -> None:
    """Write `class_labels_indices.csv`, with the classes sorted by name, and one segments CSV per split."""
    labels = make_labels(sorted({row.label for row in rows}))
    mid_of = dict(zip(labels.names, labels.mids, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "class_labels_indices.csv").write_text(labels.to_csv(), encoding="utf-8")
    for split in SPLITS:
        lines = [
            f'{row.ytid}, {row.start_s}.000, {row.start_s + CLIP_S}.000, "{mid_of[row.label]}"\n'
            for row in rows
            if row.split == split
        ]
        (folder / f"{split}_segments.csv").write_text("".join(lines), encoding="utf-8")
