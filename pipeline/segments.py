"""AudioSet's segment CSV files → segments."""

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import NoReturn

import fsspec

from pipeline.errors import InputError
from pipeline.records import Segment

log = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids name files and archive members, so nothing else is let through. YouTube's have 11 characters."""


def read_segments(path: str, split: str | None = None) -> list[Segment]:
    """Read an official segments CSV from a path or address.

    `split` is taken from the file's name (`{split}_segments.csv`) unless given. Copies that lost the comment lines, the
    quotes around labels or the decimals, or gained blank columns, blanks, CRLF or a byte-order mark, are read
    too. A row that stands twice counts once. Raises InputError with the line of a row that can't be read.
    """
    where = str(path)
    split = split or PurePosixPath(where).name.removesuffix(".csv").removesuffix("_segments")
    try:
        with fsspec.open(where, "rt", encoding="utf-8-sig", newline="") as file:
            return list(_unique(_parse(file, split, where), where))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the segments {where}: {type(error).__name__}: {error}") from error


def _parse(lines: Iterable[str], split: str, where: str) -> Iterator[tuple[int, Segment]]:
    num_segs = None
    num_read = 0
    labels_of: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        cells = [cell.strip().strip('"').strip() for cell in line.split(",")]
        if cells[0].startswith("#"):
            declared = re.search(r"num_segs=(\d+)", line)
            num_segs = int(declared[1]) if declared else num_segs
            continue
        if not any(cells):
            continue
        num_read += 1
        yield number, _parse_row(line, cells, split, f"{where}, line {number}", labels_of)
    if num_read == 0:
        raise InputError(f'{where}: expected rows such as `--PJHxphWEs, 30.000, 40.000, "/m/09x0r"`, found none')
    if num_segs not in (None, num_read):
        log.warning("%s says num_segs=%d but holds %d rows", where, num_segs, num_read)


def _parse_row(line: str, cells: list[str], split: str, where: str, labels_of: dict[str, tuple[str, ...]]) -> Segment:
    def refuse(what: str) -> NoReturn:
        raise InputError(f'{where}: expected `YTID, start, end, "mid,mid,…"`, found {what} in {line.strip()!r}')

    if line.count('"') % 2:
        refuse("a quote that does not end")
    if len(cells) < 4:
        refuse(f"{len(cells)} columns")
    ytid, start, end = cells[:3]
    if not ID.fullmatch(ytid):
        refuse(f"the id {ytid!r} (letters, digits, - and _ only)")
    try:
        start_ms, end_ms = round(float(start) * 1000), round(float(end) * 1000)
    except (ValueError, OverflowError):
        refuse(f"times {start!r} and {end!r}")
    if not 0 <= start_ms < end_ms:
        refuse(f"a start of {start} s and an end of {end} s")
    text = ",".join(cells[3:])
    if text not in labels_of:  # one tuple per combination keeps two million rows small
        labels_of[text] = tuple(sorted({mid for mid in cells[3:] if mid}))
    if not labels_of[text]:
        refuse("no labels")
    return Segment(ytid, start_ms, end_ms, labels_of[text], split)


def _unique(numbered: Iterator[tuple[int, Segment]], where: str) -> Iterator[Segment]:
    seen: dict[str, Segment] = {}
    for line, segment in numbered:
        other = seen.setdefault(segment.key, segment)
        if other is segment:
            yield segment
        elif other != segment:
            raise InputError(
                f"{where}, line {line}: the segment {segment.key} stands above with another end or other labels;"
                " remove one of the two rows"
            )
