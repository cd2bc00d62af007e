"""AudioSet's segment CSV files → segments."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import NoReturn

import fsspec
import numpy as np
import pyarrow as pa

from pipeline.errors import InputError, describe, quote
from pipeline.keys import has_repeats
from pipeline.records import Segment

log = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids name files and archive members, so nothing else is let through. YouTube's have 11 characters."""


SEGMENT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("start_ms", pa.int32()),
        ("end_ms", pa.int32()),
        ("labels", pa.dictionary(pa.int32(), pa.string())),
        ("split", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Two million segments as objects would take a gigabyte, as a table 80 MB. Labels are joined by commas."""
BATCH_ROWS = 2**14
MAX_MS = 2**31 - 1
OFFICIAL_ROW = re.compile(r'([A-Za-z0-9_-]{1,64}), (\d{1,6})\.(\d{3}), (\d{1,6})\.(\d{3}), "([^"]+)"\s*')

Row = tuple[int, str, int, int, str]
"""Line, id, start and end in ms, labels joined by commas."""


def read_segments(path: str, split: str | None = None) -> list[Segment]:
    """Read an official segments CSV from a path or address.

    `split` is taken from the file's name (`{split}_segments.csv`) unless given. Copies that lost the comment lines, the
    quotes around labels or the decimals, or gained blank columns, blanks, CRLF or a byte-order mark, are read
    too. A row that stands twice counts once. Raises InputError with the line of a row that can't be read.
    """
    return list(segments_of(read_segment_table(path, split)))


def read_segment_table(path: str, split: str | None = None, where: str = "") -> pa.Table:
    """Read a segments CSV as `read_segments` does, into a table of `SEGMENT_SCHEMA`; `where` names it in errors."""
    where = where or str(path)
    split = split or PurePosixPath(where).name.removesuffix(".csv").removesuffix("_segments")
    try:
        with fsspec.open(str(path), "rt", encoding="utf-8-sig", newline="") as file:
            lines, table = _to_table(_parse(file, where), split)
    except (
        OSError,
        ValueError,
        ImportError,
    ) as error:  # fsspec's, for a scheme that it doesn't know or has no package for
        raise InputError(f"can't read the segments {where}: {describe(error)}") from error
    return _without_repeats(table, lines, where)


def join_tables(tables: Iterable[pa.Table]) -> pa.Table:
    """Join tables of `SEGMENT_SCHEMA` into one."""
    joined = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    pa.default_memory_pool().release_unused()
    return joined


def segments_of(table: pa.Table) -> Iterator[Segment]:
    """Yield the segments of a table of `SEGMENT_SCHEMA`."""
    labels_of: dict[str, tuple[str, ...]] = {}
    for batch in table.to_batches(BATCH_ROWS):
        for key, start_ms, end_ms, labels, split in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if labels not in labels_of:
                labels_of[labels] = tuple(labels.split(","))
            yield Segment(key.rpartition("_")[0], start_ms, end_ms, labels_of[labels], split)


def table_of(segments: Sequence[Segment]) -> pa.Table:
    """Turn segments into a table of `SEGMENT_SCHEMA`."""
    columns = [
        [segment.key for segment in segments],
        [segment.start_ms for segment in segments],
        [segment.end_ms for segment in segments],
        [",".join(segment.labels) for segment in segments],
        [segment.split for segment in segments],
    ]
    return pa.table([pa.array(*pair) for pair in zip(columns, SEGMENT_SCHEMA.types, strict=True)], SEGMENT_SCHEMA)


def _to_table(rows: Iterator[Row], split: str) -> tuple[np.ndarray, pa.Table]:
    """Return the line of each row, and the table."""
    codes: dict[str, int] = {}
    numbers: list[np.ndarray] = []
    types = (pa.string(), pa.int32(), pa.int32(), pa.int32())
    chunks: list[list[pa.Array]] = [[] for _ in types]
    while block := list(islice(rows, BATCH_ROWS)):
        line, ytid, start_ms, end_ms, labels = zip(*block, strict=True)
        keys = [f"{name}_{start}" for name, start in zip(ytid, start_ms, strict=True)]
        columns = (keys, start_ms, end_ms, [codes.setdefault(text, len(codes)) for text in labels])
        for parts, column, type_ in zip(chunks, columns, types, strict=True):
            parts.append(pa.array(column, type_))
        numbers.append(np.array(line, np.int32))
    whole = []
    for parts in chunks:
        whole.append(pa.concat_arrays(parts))
        parts.clear()  # two copies of one column at a time, not of all
        pa.default_memory_pool().release_unused()
    labels = pa.DictionaryArray.from_arrays(whole.pop(), pa.array(codes, pa.string()))
    splits = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(labels), np.int32)), pa.array([split]))
    return np.concatenate(numbers), pa.table([*whole, labels, splits], SEGMENT_SCHEMA)


def _without_repeats(table: pa.Table, lines: np.ndarray, where: str) -> pa.Table:
    """Drop repeated rows. Raises InputError if two of one key contradict each other."""
    if not has_repeats(table["key"]):
        return table
    keys = table["key"].to_pandas()
    repeated = keys.duplicated().to_numpy()
    first_of: dict[str, tuple] = {}
    for row in np.flatnonzero(keys.duplicated(keep=False).to_numpy()):
        values = tuple(table[name][int(row)].as_py() for name in SEGMENT_SCHEMA.names)
        if first_of.setdefault(values[0], values) != values:
            raise InputError(
                f"{where}, line {lines[row]}: the segment {values[0]} appears above with a different end or different"
                " labels; remove one of the two rows"
            )
    return table.filter(pa.array(~repeated)).combine_chunks()


def _parse(lines: Iterable[str], where: str) -> Iterator[Row]:
    num_segs = None
    num_read = 0
    labels_of: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        official = OFFICIAL_ROW.fullmatch(line)
        if official and (labels := labels_of.get(official[6])):
            start_ms, end_ms = int(official[2] + official[3]), int(official[4] + official[5])
            if start_ms < end_ms:
                num_read += 1
                yield number, official[1], start_ms, end_ms, labels
                continue
        cells = [cell.strip().strip('"').strip() for cell in line.split(",")]
        if cells[0].startswith("#"):
            declared = re.search(r"num_segs=(\d{1,18})\b", line, re.ASCII)
            num_segs = int(declared[1]) if declared else num_segs
            continue
        if not any(cells):
            continue
        num_read += 1
        ytid, start_ms, end_ms, labels = _parse_row(line, cells, f"{where}, line {number}")
        if official:
            labels_of[official[6]] = labels
        yield number, ytid, start_ms, end_ms, labels
    if num_read == 0:
        raise InputError(f'{where}: expected rows such as `--PJHxphWEs, 30.000, 40.000, "/m/09x0r"`, found none')
    if num_segs not in (None, num_read):
        log.warning("%s says num_segs=%d but holds %d rows", where, num_segs, num_read)


def _parse_row(line: str, cells: list[str], where: str) -> tuple[str, int, int, str]:
    def refuse(what: str) -> NoReturn:
        raise InputError(f'{where}: expected `YTID, start, end, "mid,mid,…"`, found {what} in {quote(line.strip())}')

    if line.count('"') % 2:
        refuse("an unclosed quote")
    if len(cells) < 4:
        refuse(f"{len(cells)} columns")
    ytid, start, end = cells[:3]
    if not ID.fullmatch(ytid):
        refuse(f"the id {quote(ytid)} (letters, digits, - and _ only, at most 64)")
    try:
        start_ms, end_ms = round(float(start) * 1000), round(float(end) * 1000)
    except (ValueError, OverflowError):
        refuse(f"times {quote(start)} and {quote(end)}")
    if not 0 <= start_ms < end_ms <= MAX_MS:
        refuse(f"a start of {start[:20]} s and an end of {end[:20]} s")
    labels = ",".join(sorted({mid for mid in cells[3:] if mid}))
    if not labels:
        refuse("no labels")
    return ytid, start_ms, end_ms, labels
