"""Read a table of own sounds as CSV in UTF-8, or as Excel's Unicode text, which is UTF-16 with tabs."""

import codecs
import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import InputError, describe, quote
from pipeline.recordings.tables import LabelledClip
from pipeline.segments import parse_seconds

SPLITS = ("train", "valid", "eval", "test")
FOLD = "fold"
"""Prefix of the names of splits that are folds."""
COLUMNS = ("path", "labels", "start", "end", "split", "group", "fold")
REQUIRED_COLUMNS = COLUMNS[:2]
COMPLETE_COLUMNS = ("split", "group", "fold")
"""Columns that need a value in all rows or in none."""
COLUMN_OF_NAME = {
    **dict.fromkeys(("filename", "file", "filepath", "file_name", "fname", "audio"), "path"),
    **dict.fromkeys(("label", "class", "category", "tags", "target"), "labels"),
}
"""Common names of our columns in other programs' tables, for suggestions in error messages."""
LABEL_SEPARATOR = ";"
NO_END = 0
MAX_S = 2**31 / 1000
"""Times are stored as milliseconds in 32 bits."""
MARKS_OF_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UNCLEAN = re.compile(r"[^\w-]+")


def read_sound_table(table: Path) -> list[LabelledClip]:
    """Return one uncut clip per row. The end of a whole file is `NO_END`, and the split of a fold is `fold…`.

    Raises InputError, with the line, for an invalid row.
    """
    numbered = list(_read_rows(table))
    rows = [row for _, row in numbered]
    is_multi_label = any(len(row.labels) > 1 for row in rows) or len({row.labels for row in rows if row.labels}) == 1
    if not is_multi_label and (negative := next((line for line, row in numbered if not row.labels), 0)):
        raise InputError(
            f"{table}, line {negative}: expected labels separated by {LABEL_SEPARATOR}, found none; a negative clip"
            " requires data with several labels per clip, or with a single class"
        )
    return rows


def _read_rows(table: Path) -> Iterator[tuple[int, LabelledClip]]:
    """Yield the line and the clip of each row that is not empty."""
    text = read_text(table)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="," if "," in header else "\t")
    try:
        columns = [clean(name) for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        _check_header(columns, table)
        is_filled: dict[str, bool] = {}
        for row in reader:
            cells = {name: clean(row.get(name) or "") for name in columns}
            if any(cells.values()) or any(row.get(None) or ()):
                where = f"{table}, line {reader.line_num}"
                _check_complete(cells, is_filled, where)
                yield reader.line_num, _read_row(cells, row.get(None) or (), where, table.parent)
    except csv.Error as error:
        raise InputError(f"can't read {table}: {describe(error)}; expected a CSV file in UTF-8 or a folder") from error


def read_text(table: Path) -> str:
    """Read a text file in UTF-8 or, with a byte-order mark, UTF-16. Raises InputError for other encodings."""
    try:
        content = table.read_bytes()
        return content.decode("utf-16" if content.startswith(MARKS_OF_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"can't read {table}: it is not UTF-8 ({describe(error)}); save it as UTF-8, for example with"
            " `iconv -f LATIN1 -t UTF-8 OLD.csv > NEW.csv`"
        ) from error
    except OSError as error:
        raise InputError(f"can't read {table}: {describe(error)}; expected a CSV file in UTF-8 or a folder") from error


def clean(text: str) -> str:
    """Strip and compose a name, because macOS decomposes `é` in file names into two characters."""
    return unicodedata.normalize("NFC", text).strip()


def find_file(folder: Path, name: str) -> Path | None:
    """Find a file in a folder by the given, the composed or the decomposed form of its name."""
    forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
    with suppress(OSError):  # raised for names that are too long
        return next((folder / form for form in forms if form and (folder / form).is_file()), None)
    return None


def _check_header(columns: Sequence[str], table: Path) -> None:
    if not set(REQUIRED_COLUMNS) <= set(columns):
        raise InputError(
            f"{table}: expected the columns path,labels and optionally {','.join(COLUMNS[2:])}, found"
            f" {quote(','.join(columns))}{_suggestion(columns)}"
        )


def _suggestion(columns: Sequence[str]) -> str:
    """Suggest how to repair a header that looks like another program's."""
    if len(columns) == 1 and (separator := next((each for each in ";|" if each in columns[0]), "")):
        return f": its columns are separated by {separator!r}; save it with commas"
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    renamed = {COLUMN_OF_NAME[name.lower()]: name for name in columns if name.lower() in COLUMN_OF_NAME}
    renamed |= {name.lower(): name for name in columns if name.lower() in REQUIRED_COLUMNS}
    pairs = [f"{name} for {renamed[name]}" for name in missing if name in renamed]
    return f"; did you mean {' and '.join(pairs)}? Rename the columns" if pairs else ""


def _check_complete(cells: Mapping[str, str], is_filled: dict[str, bool], where: str) -> None:
    """Raise InputError if a column is blank in this row but not in the first row, or the reverse."""
    for name in COMPLETE_COLUMNS:
        filled = bool(cells.get(name))
        if is_filled.setdefault(name, filled) != filled:
            raise InputError(
                f"{where}: expected a {name} in each row or in none, found {'one here' if filled else 'a blank'}"
            )


def _read_row(cells: Mapping[str, str], extra: Sequence[str], where: str, base: Path) -> LabelledClip:
    if any(map(str.strip, extra)):
        raise InputError(
            f"{where}: expected {len(cells)} cells, found more, such as {quote(extra[0])}; put quotes around a cell"
            " that contains commas"
        )
    path = find_file(base, cells["path"])
    if path is None:
        raise InputError(f"{where}: expected an audio file at {quote(base / cells['path'])}, found none")
    labels = dict.fromkeys(label.strip() for label in cells["labels"].split(LABEL_SEPARATOR) if label.strip())
    start_ms, end_ms = parse_times(cells.get("start", ""), cells.get("end", ""), where)
    return LabelledClip(path, tuple(labels), _split_of(cells, where), start_ms, end_ms, cells.get("group", ""))


def parse_times(start: str, end: str, where: str) -> tuple[int, int]:
    """Parse start and end in seconds and round them to ms. Blanks mean the file's start and end."""
    times = f"{quote(start)} and {quote(end)}"
    try:
        start_s, end_s = parse_seconds(start or "0"), parse_seconds(end or str(NO_END))
    except ValueError as error:
        raise InputError(f"{where}: expected start and end in seconds, found {times}") from error
    # All comparisons with NaN are false, so this form rejects NaN.
    if not (0 <= start_s < MAX_S and (not end or start_s < end_s < MAX_S)):
        raise InputError(f"{where}: expected 0 ≤ start < end, found {times}")
    return round(start_s * 1000), round(end_s * 1000)


def _split_of(cells: Mapping[str, str], where: str) -> str:
    split, fold = cells.get("split", ""), cells.get("fold", "")
    if split and fold:
        raise InputError(f"{where}: expected a split or a fold, found both; remove one of the columns")
    if split and split not in SPLITS:
        raise InputError(f"{where}: expected a split of {', '.join(SPLITS)}, found {quote(split)}")
    return f"{FOLD}{UNCLEAN.sub('_', fold)}" if fold else split
