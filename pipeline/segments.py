"""Read AudioSet's CSV files of segments."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

import codecs
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO, NoReturn, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError, describe_storage_error, quote
from pipeline.keys import has_repeats
from pipeline.records import Segment

log = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Pattern of valid ids, which are used in names of files and members. YouTube's ids have 11 characters."""


HELD_OUT_SPLITS = ("eval", "valid", "test")
"""Splits for evaluation. They are excluded from the statistics of the training data."""
SEGMENT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("start_ms", pa.int32()),
        ("end_ms", pa.int32()),
        ("labels", pa.dictionary(pa.int32(), pa.string())),
        ("split", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""Columns of a table of segments. Each label field joins the labels with commas. Two million rows take 80 MB; as Python
objects, they would take a gigabyte."""
BATCH_ROWS = 2**14
BLOCK_BYTES = 2**24
MAX_ROW_BYTES = 2**16
"""Maximum length of a row in bytes. Official rows are shorter than 1 KB, and parsing a row of 100 MB would take
gigabytes of memory."""
EXCEL_ERROR = re.compile(r"#(NAME\?|VALUE!|REF!|N/A|NUM!|NULL!|DIV/0!)")
SECONDS = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""Pattern of times in tables. `float` would also accept `1_0` and digits of other alphabets."""
MAX_MS = 2**31 - 1
OFFICIAL_ROW = r'^[A-Za-z0-9_-]{1,64}, [0-9]{1,6}\.[0-9]{3}, [0-9]{1,6}\.[0-9]{3}, "[^"]+" *\n?$'

Row = tuple[int, str, int, int, str]
"""Line number, key, start and end in ms, and the labels joined with commas."""


def read_segments(path: str, split: str | None = None) -> list[Segment]:
    """Read an official CSV file of segments from a path or address.

    `split` defaults to the split in the file's name (`{split}_segments.csv`). Common variants of the official files are
    also accepted: files without comment lines, without quotes around labels or without decimals, and files with empty
    columns, extra blanks, CRLF or a byte-order mark. Repeated rows count once. Raises InputError, which names the line,
    if a row is invalid.

    >>> import fsspec
    >>> with fsspec.open("memory://eval_segments.csv", "w") as file:
    ...     _ = file.write('--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\\n')
    >>> read_segments("memory://eval_segments.csv")
    [Segment(ytid='--PJHxphWEs', start_ms=30000, end_ms=40000, labels=('/m/09x0r', '/t/dd00088'), split='eval')]
    """
    return list(segments_of(read_segment_table(path, split)))


def read_segment_table(path: str, split: str | None = None, where: str = "") -> pa.Table:
    """Read a CSV file of segments into a table of `SEGMENT_SCHEMA`. Errors refer to the file as `where`."""
    where = where or str(path)
    split = split or PurePosixPath(where).name.removesuffix(".csv").removesuffix("_segments")
    # Encode the labels block by block, so that the text of two million rows is never in memory at once.
    blocks = [_encode(block, "labels") for block in _parse(_read_blocks(str(path), where), where)]
    table = _without_repeats(join_tables(blocks), where)
    return _encode(table.append_column("split", pa.repeat(pa.scalar(split), len(table))), "split").select(
        SEGMENT_SCHEMA.names
    )


def join_tables(tables: Iterable[pa.Table]) -> pa.Table:
    """Join several tables of `SEGMENT_SCHEMA` into one."""
    joined = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    pa.default_memory_pool().release_unused()
    return joined


def _encode(table: pa.Table, name: str) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, table[name].dictionary_encode())


def segments_of(table: pa.Table) -> Iterator[Segment]:
    """Yield the segments in a table of `SEGMENT_SCHEMA`."""
    labels_of: dict[str, tuple[str, ...]] = {}
    for batch in table.to_batches(BATCH_ROWS):
        for key, start_ms, end_ms, labels, split in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if labels not in labels_of:
                labels_of[labels] = tuple(labels.split(","))
            yield Segment(key.rpartition("_")[0], start_ms, end_ms, labels_of[labels], split)


def table_of(segments: Sequence[Segment]) -> pa.Table:
    """Convert segments to a table of `SEGMENT_SCHEMA`."""
    columns = [
        [segment.key for segment in segments],
        [segment.start_ms for segment in segments],
        [segment.end_ms for segment in segments],
        [",".join(segment.labels) for segment in segments],
        [segment.split for segment in segments],
    ]
    return pa.table([pa.array(*pair) for pair in zip(columns, SEGMENT_SCHEMA.types, strict=True)], SEGMENT_SCHEMA)


def _read_blocks(path: str, where: str) -> Iterator[bytes]:
    """Yield a UTF-8 file in blocks of whole lines, and skip its byte-order mark."""
    try:
        with fsspec.open(path, "rb") as file:
            source = cast(BinaryIO, file)
            mark = codecs.BOM_UTF8
            rest = b""
            while chunk := source.read(BLOCK_BYTES):
                chunk = rest + chunk
                # A carriage return at the end of the chunk may be the first half of a line break.
                end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r", 0, -1)) + 1
                if not end and len(chunk) > MAX_ROW_BYTES:
                    end = len(chunk)  # `_parse` rejects this block and reports the line
                block, rest = chunk[:end], chunk[end:]
                if block:
                    yield _checked_utf8(block.removeprefix(mark))
                    mark = b""
            if rest:
                yield _checked_utf8(rest.removeprefix(mark))
    except Exception as error:  # every storage library raises its own errors
        raise InputError(f"can't read the segments {where}: {describe_storage_error(error)}") from error


def _checked_utf8(text: bytes) -> bytes:
    text.decode()
    return text


def _parse(blocks: Iterable[bytes], where: str) -> Iterator[pa.Table]:
    """Yield a table of rows for each block, with the line number and all columns of `SEGMENT_SCHEMA` except the split.

    Arrow parses all rows in the official format at once. Python only parses the remaining rows.
    """
    num_lines = num_rows = 0
    num_segs = None
    joined_of: dict[str, str] = {}
    for block in blocks:
        lines = _split_lines(block)
        _check_lengths(lines, num_lines + 1, where)
        table = _parse_official(lines, num_lines + 1, joined_of)
        rows: list[Row] = []
        is_other = np.ones(len(lines), bool)
        is_other[table["line"].to_numpy() - num_lines - 1] = False
        for position in np.flatnonzero(is_other).tolist():
            line, number = lines[position].as_py(), num_lines + 1 + position
            cells = [cell.strip().strip('"').strip() for cell in line.split(",")]
            if EXCEL_ERROR.match(cells[0]):
                raise InputError(
                    f"{where}, line {number}: expected a YouTube id, found {quote(cells[0])}, which Excel writes for"
                    " ids that start with `-`; restore the original file"
                )
            if cells[0].startswith("#"):
                declared = re.search(r"num_segs=(\d{1,18})\b", line, re.ASCII)
                num_segs = int(declared[1]) if declared else num_segs
            elif any(cells):
                rows.append((number, *_parse_row(line, cells, f"{where}, line {number}")))
        if rows:
            others = pa.table([pa.array(column) for column in zip(*rows, strict=True)], table.column_names)
            table = pa.concat_tables([table, others.cast(table.schema)]).sort_by("line")
        num_lines += len(lines)
        num_rows += len(table)
        yield table
    if num_rows == 0:
        raise InputError(f'{where}: expected rows such as `--PJHxphWEs, 30.000, 40.000, "/m/09x0r"`, found none')
    if num_segs not in (None, num_rows):
        log.warning("%s declares num_segs=%d but contains %d rows", where, num_segs, num_rows)


def _check_lengths(lines: pa.LargeStringArray, first: int, where: str) -> None:
    lengths = pc.binary_length(lines)
    longest = pc.max(lengths).as_py() or 0
    if longest > MAX_ROW_BYTES:
        number = first + pc.index(lengths, longest).as_py()
        raise InputError(f"{where}, line {number}: expected at most {MAX_ROW_BYTES} bytes, found {longest} or more")


def _split_lines(block: bytes) -> pa.LargeStringArray:
    """Split UTF-8 text into lines (L,) that keep their line feeds. The text is not copied unless it contains carriage
    returns."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
    if not len(ends) or ends[-1] != len(block):
        ends = np.append(ends, len(block))
    offsets = np.concatenate([[0], ends]).astype(np.int64)
    return pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))


def _parse_official(lines: pa.LargeStringArray, first: int, joined_of: dict[str, str]) -> pa.Table:
    """Parse the valid rows in the official format.

    first: number of the first line.
    joined_of: cache that maps the quoted text of labels to the parsed labels. There are far fewer distinct texts than
    rows.
    """
    # Match first and split afterwards. This takes a third of the time of a single expression that captures the fields.
    is_official = pc.match_substring_regex(lines, OFFICIAL_ROW)
    # AudioSet's own files contain only official rows. Don't filter them, because that would copy them.
    official = lines if pc.all(is_official).as_py() else lines.filter(is_official)
    fields = pc.split_pattern(official, ", ", max_splits=3)
    ytid, start, end, labels = (pc.list_element(fields, place).cast(pa.string()) for place in range(4))
    start_ms, end_ms = (pc.replace_substring(time, ".", "").cast(pa.int32()) for time in (start, end))
    texts = labels.dictionary_encode()
    for text in texts.dictionary.to_pylist():
        if text not in joined_of:
            joined_of[text] = _join_labels(text.strip().strip('"').split(","))
    joined = pa.array([joined_of[text] for text in texts.dictionary.to_pylist()], pa.string()).take(texts.indices)
    table = pa.table(
        {
            "line": pa.array(np.flatnonzero(is_official) + first, pa.int32()),
            "key": pc.binary_join_element_wise(ytid, start_ms.cast(pa.string()), "_"),
            "start_ms": start_ms,
            "end_ms": end_ms,
            "labels": joined,
        }
    )
    is_valid = pc.and_(pc.less(start_ms, end_ms), pc.not_equal(joined, ""))
    return table.filter(is_valid)


def _parse_row(line: str, cells: list[str], where: str) -> tuple[str, int, int, str]:
    """Return a row's key, its start and end in ms, and its joined labels. Raises InputError if the row is invalid."""

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
        start_ms, end_ms = round(parse_seconds(start) * 1000), round(parse_seconds(end) * 1000)
    except (ValueError, OverflowError):
        refuse(f"times {quote(start)} and {quote(end)}")
    if not 0 <= start_ms < end_ms <= MAX_MS:
        refuse(f"a start of {start[:20]} s and an end of {end[:20]} s")
    labels = _join_labels(cells[3:])
    if not labels:
        refuse("no labels")
    return f"{ytid}_{start_ms}", start_ms, end_ms, labels


def parse_seconds(text: str) -> float:
    """Parse a decimal number with ASCII digits. Raises ValueError for any other text, such as `1_0` or `nan`."""
    if not SECONDS.fullmatch(text):
        raise ValueError(f"not a number: {quote(text)}")
    return float(text)


def _join_labels(cells: Iterable[str]) -> str:
    return ",".join(sorted({mid for cell in cells if (mid := cell.strip())}))


def _without_repeats(table: pa.Table, where: str) -> pa.Table:
    """Drop repeated rows. Raises InputError, which names the line, if two rows with the same key differ."""
    if not has_repeats(table["key"]):
        return table
    keys = table["key"].to_pandas()
    first_of: dict[str, list] = {}
    for row in table.filter(pa.array(keys.duplicated(keep=False))).to_pylist():
        line, *values = row.values()
        if first_of.setdefault(row["key"], values) != values:
            raise InputError(
                f"{where}, line {line}: the segment {row['key']} appears above with a different end or different"
                " labels; remove one of the two rows"
            )
    return table.filter(pa.array(~keys.duplicated())).combine_chunks()
