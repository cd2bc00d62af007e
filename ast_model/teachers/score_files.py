"""Read files of published scores in blocks of rows, with the clip id of each row.

A file for two million clips and 527 classes takes 4 GB, so scores are read in blocks. Opening a file never executes
code from it. Arrays of Python objects are rejected, and a pickled index may contain only strings and integers.
"""

import io
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, InputError, describe, quote

BLOCK_ROWS = 4096
ID_COLUMNS = ("key", "id", "ytid", "youtube_id", "video_id", "filename", "fname", "audio_name", "name")
"""Preferred names of the id column in a table with several text columns."""
Shape = tuple[int, int]


@dataclass(frozen=True)
class ScoreFile:
    """An open file of scores (N, C)."""

    where: str
    """Path of the file, for messages."""
    ids: pa.ChunkedArray
    """Published clip id of each row (N,); null for rows without an id."""
    num_classes: int
    """Number of score columns."""
    read_blocks: Callable[[], Iterator[np.ndarray]]
    """Function that yields the scores in blocks of rows (n, C)."""


def open_scores(path: str | Path, index: str = "", allow_unnamed: bool = False) -> ScoreFile:
    """Open a `.npy` or parquet file of scores, detected by its first bytes.

    index: for a `.npy`, the pickle or JSON file with {id: row}.
    allow_unnamed: accept an index that does not cover all rows.
    Raises InputError for invalid content, and ConfigError if `index` is missing or not needed.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise InputError(f"expected scores in {path}, found none: {describe(error)}") from error
    if start.startswith(b"\x93NUMPY"):
        if not index:
            raise ConfigError(f"{path} contains no clip ids: set --index to the file that maps ids to rows")
        return _open_npy(path, index, allow_unnamed)
    if index:
        raise ConfigError(f"--index is only for .npy files, but {path} contains clip ids itself; drop it")
    if start.startswith(b"PAR1"):
        return _open_parquet(path)
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"expected scores in {path}, found a Git LFS pointer; download the file itself")
    raise InputError(
        f"expected scores as .npy or parquet in {path}, found a file that starts with {start!r}; convert it to"
        " parquet, as docs/teachers.md shows"
    )


def _open_npy(path: Path, index: str, allow_unnamed: bool) -> ScoreFile:
    with path.open("rb") as stream:
        (num_rows, num_classes), _ = _read_npy_header(stream, str(path), path.stat().st_size)
    row_of = read_index(Path(index))
    rows = np.fromiter(row_of.values(), np.int64, len(row_of))
    is_valid = (rows >= 0) & (rows < num_rows)
    if len(rows) > num_rows or not is_valid.all() or (len(rows) < num_rows and not allow_unnamed):
        outside = f", {(~is_valid).sum()} of them with row numbers beyond the file" if not is_valid.all() else ""
        raise InputError(
            f"expected in {index} one id for each of the {num_rows} rows of {path}, found {len(rows)} ids{outside}."
            " Download both files in the same version, or skip rows without an id with --allow-unnamed-rows"
        )
    counts = np.bincount(rows, minlength=num_rows)
    if counts.max(initial=0) > 1:
        row = int(counts.argmax())
        both = [name for name, number in row_of.items() if number == row]
        raise InputError(f"{index}: expected one id for each row, found {quote(both)} for row {row}")
    names = np.full(num_rows, None, object)
    names[rows] = list(row_of)
    ids = pa.chunked_array([pa.array(names, pa.string())])
    return ScoreFile(str(path), ids, num_classes, lambda: _read_npy(path.open("rb"), str(path)))


def read_index(path: Path) -> Mapping[str, int]:
    """Read an index {id: row} from pickle or JSON. Raises InputError for invalid content."""
    data = path.read_bytes()
    try:
        found = json.loads(data) if data[:1] == b"{" else _PlainUnpickler(io.BytesIO(data)).load()
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # a damaged pickle raises errors of any type
        raise InputError(f"{path} is not a pickled or JSON {{id: row}}, or is damaged: {describe(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"expected {{id: row}} in {path}, found a {type(found).__name__}")
    for name, row in found.items():
        if not isinstance(name, str) or type(row) is not int:
            raise InputError(f"expected text ids and integer rows in {path}, found {quote((name, row))}")
    return found


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles only dicts, text and numbers. Refuses to look up names, which a pickle needs to run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise InputError(
            f"was not opened, because it refers to {quote(f'{module}.{name}')} and could run foreign code. If you"
            " trust it, convert it to JSON, {id: row}"
        )


def _read_npy_header(stream: IO[bytes], where: str, num_bytes: int | None = None) -> tuple[Shape, np.dtype]:
    """Read the shape and type of a float matrix, and leave the stream at the first row.

    num_bytes: size of the whole file, checked if given.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise InputError(f"{where} is truncated or damaged: {describe(error)}; download it again") from error
    if dtype.kind != "f" or len(shape) != 2 or is_fortran:
        order = " in Fortran order" if is_fortran else ""
        found = (
            "Python objects, which could run foreign code" if dtype.hasobject else f"{dtype} of shape {shape}{order}"
        )
        raise InputError(
            f"expected floats of shape (clips, classes) in C order in {where}, found {found}"
            + ("; save it again with numpy.ascontiguousarray" if is_fortran else "")
        )
    expected = stream.tell() + shape[0] * shape[1] * dtype.itemsize
    if num_bytes is not None and num_bytes != expected:
        raise InputError(f"expected {expected:,} bytes in {where}, found {num_bytes:,}: truncated? Download it again")
    return (shape[0], shape[1]), dtype


def _read_npy(stream: IO[bytes], where: str) -> Iterator[np.ndarray]:
    # Read instead of memory-mapping, because mapped pages count towards the process's memory.
    with stream:
        (num_rows, num_classes), dtype = _read_npy_header(stream, where)
        for start in range(0, num_rows, BLOCK_ROWS):
            shape = min(BLOCK_ROWS, num_rows - start), num_classes
            data = stream.read(shape[0] * shape[1] * dtype.itemsize)
            if len(data) < shape[0] * shape[1] * dtype.itemsize:
                raise InputError(f"expected {num_rows} rows in {where}, found fewer: truncated? Download it again")
            yield np.frombuffer(data, dtype).reshape(shape)


_LIST_TYPES = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)


def _open_parquet(path: Path) -> ScoreFile:
    """Open a table with one text column of ids and one list column of scores."""
    try:
        file = pq.ParquetFile(path, buffer_size=2**20)
        fields = {field.name: field.type for field in file.schema_arrow}
        lists = [name for name, kind in fields.items() if isinstance(kind, _LIST_TYPES)]
        floats = [name for name in lists if pa.types.is_floating(fields[name].value_type)]
        column = _single_column("lists of floats", floats, fields)
        id_column = _find_id_column(fields)
        ids = file.read([id_column])[id_column].cast(pa.string())
        first = next(file.iter_batches(1, columns=[column]), None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is truncated or not parquet: {describe(error)}; download it again") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if first is None:
        raise InputError(f"expected rows of scores in {path}, found an empty table")

    def read_blocks() -> Iterator[np.ndarray]:
        with pq.ParquetFile(path, buffer_size=2**20) as opened:
            for batch in opened.iter_batches(BLOCK_ROWS, columns=[column]):
                yield _to_matrix(batch.column(column), f"{path}, column {column}")

    return ScoreFile(str(path), ids, len(first.column(0)[0]), read_blocks)


def _to_matrix(column: Any, where: str) -> np.ndarray:
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise InputError(f"expected the same number of scores in each row of {where}, found {quote(lengths.tolist())}")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _find_id_column(fields: Mapping[str, pa.DataType]) -> str:
    # pandas writes a categorical column as a dictionary type.
    kinds = {
        name: getattr(kind, "value_type", kind) if pa.types.is_dictionary(kind) else kind
        for name, kind in fields.items()
    }
    text = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    preferred = [name for name in ID_COLUMNS if name in text]
    return preferred[0] if preferred else _single_column("text, the clip ids,", text, fields)


def _single_column(content: str, found: list[str], fields: Mapping[str, Any]) -> str:
    if len(found) != 1:
        raise InputError(
            f"expected one column of {content} found {quote(', '.join(found)) if found else 'none'} among"
            f" {quote({name: str(kind) for name, kind in fields.items()})}"
        )
    return found[0]
