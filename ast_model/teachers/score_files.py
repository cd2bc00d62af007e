"""Scores as others publish them: which clip each row is of, and the rows, block by block.

A file of two million clips and 527 classes has 4 GB, so none is read as a whole. Nothing in a file is executed: arrays
of Python objects are refused, and a pickled index may hold strings and numbers only.
"""

import io
import json
import pickle
import zipfile
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
"""Names that are looked for where several columns hold text."""


@dataclass(frozen=True)
class Block:
    """Some rows of a file."""

    values: np.ndarray
    """(n, C), or (n, k) of the k classes that a row names."""
    classes: np.ndarray | None = None
    """(n, k) numbers of these classes; None where there is a value for each."""


@dataclass(frozen=True)
class ScoreFile:
    """Scores in a file, not read yet."""

    where: str
    ids: pa.ChunkedArray
    """What each row (N,) is called; null for one without a name."""
    num_classes: int | None
    """Columns; None if each row names its classes by number."""
    mids: tuple[str, ...]
    """Of the columns, where the file says them."""
    blocks: Callable[[], Iterator[Block]]


def open_scores(path: str | Path, index: str = "", allow_unnamed: bool = False) -> ScoreFile:
    """Open a file of scores, whatever it is by its first bytes.

    `.npy` of (N, C) with `index`, a pickled or JSON {id: row}; parquet or HDF5 of ids and scores, or of ids, values and
    the numbers of their classes; or an `.npz` of jobs/evaluate.py. allow_unnamed: take an `index` that does not name
    each row. Raises InputError, naming what was found, ConfigError if `index` or a package is missing.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise InputError(f"expected scores in {path}, found none: {describe(error)}") from error
    if start.startswith(b"\x93NUMPY"):
        if not index:
            raise ConfigError(f"{path} names no clips: give the file that says which row is whose as --index")
        return _open_npy(path, index, allow_unnamed)
    if index:
        raise ConfigError(f"--index belongs to a .npy, but {path} names its clips itself; leave it out")
    for magic, opened in ((b"PAR1", _open_parquet), (b"\x89HDF", _open_hdf5), (b"PK", _open_evaluation)):
        if start.startswith(magic):
            return opened(path)
    what = "a pointer of Git LFS" if start.startswith(b"version https://git-lfs") else f"a file that starts {start!r}"
    raise InputError(f"expected scores as .npy, .npz, parquet or HDF5 in {path}, found {what}; fetch it again")


def _open_npy(path: Path, index: str, allow_unnamed: bool) -> ScoreFile:
    with path.open("rb") as stream:
        (num_rows, num_classes), _ = _read_npy_header(stream, str(path), path.stat().st_size)
    row_of = read_index(Path(index))
    rows = np.fromiter(row_of.values(), np.int64, len(row_of))
    is_there = (rows >= 0) & (rows < num_rows)
    if len(rows) > num_rows or not is_there.all() or (len(rows) < num_rows and not allow_unnamed):
        outside = f", of which {(~is_there).sum()} name rows that {path} does not have" if not is_there.all() else ""
        raise InputError(
            f"expected in {index} an id for each of the {num_rows} rows of {path}, found {len(rows)} ids{outside}: they"
            " are of different versions. Rows without an id can be left out with --allow-unnamed-rows"
        )
    counts = np.bincount(rows, minlength=num_rows)
    if counts.max(initial=0) > 1:
        row = int(counts.argmax())
        both = [name for name, number in row_of.items() if number == row]
        raise InputError(f"{index}: expected one id for each row, found {quote(both)} for row {row}")
    names = np.full(num_rows, None, object)
    names[rows] = list(row_of)
    ids = pa.chunked_array([pa.array(names, pa.string())])
    return ScoreFile(str(path), ids, num_classes, (), lambda: _read_npy(path.open("rb"), str(path)))


def read_index(path: Path) -> Mapping[str, int]:
    """Read which row is whose: {id: row}, pickled or as JSON. Raises InputError for anything else."""
    data = path.read_bytes()
    try:
        found = json.loads(data) if data[:1] == b"{" else _PlainUnpickler(io.BytesIO(data)).load()
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    except Exception as error:  # a damaged pickle ends in an error of any kind
        raise InputError(f"{path} is not a pickled or JSON {{id: row}}, or is damaged: {describe(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"expected {{id: row}} in {path}, found a {type(found).__name__}")
    for name, row in found.items():
        if not isinstance(name, str) or type(row) is not int:
            raise InputError(f"expected text and a row's number in {path}, found {quote((name, row))}")
    return found


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, text and numbers. All that a pickle can execute is found by name first, and no name is found."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise InputError(
            f"wants to use {quote(f'{module}.{name}')}, which could run foreign code, and was not opened; an index"
            " needs only text and numbers. Write it as JSON, {id: row}, where you trust it"
        )


Shape = tuple[int, int]


def _read_npy_header(stream: IO[bytes], where: str, num_bytes: int | None = None) -> tuple[Shape, np.dtype]:
    """Return shape and type of a matrix of floats, the stream at its first row; num_bytes: of the whole file."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise InputError(f"{where} is cut short or damaged: {describe(error)}; fetch it again") from error
    if dtype.kind != "f" or len(shape) != 2 or is_fortran:
        order = " in Fortran's order" if is_fortran else ""
        what = "Python objects, which could run foreign code" if dtype.hasobject else f"{dtype} of shape {shape}{order}"
        raise InputError(
            f"expected floats of shape (clips, classes) in {where}, row by row, found {what}"
            + ("; save it again with numpy.ascontiguousarray" if is_fortran else "")
        )
    expected = stream.tell() + shape[0] * shape[1] * dtype.itemsize
    if num_bytes is not None and num_bytes != expected:
        raise InputError(f"expected {expected:,} bytes in {where}, found {num_bytes:,}: cut short? Fetch it again")
    return (shape[0], shape[1]), dtype


def _read_npy(stream: IO[bytes], where: str) -> Iterator[Block]:
    # Read, not mapped: a map's pages count as this process's memory.
    with stream:
        (num_rows, num_classes), dtype = _read_npy_header(stream, where)
        for start in range(0, num_rows, BLOCK_ROWS):
            shape = min(BLOCK_ROWS, num_rows - start), num_classes
            data = stream.read(shape[0] * shape[1] * dtype.itemsize)
            if len(data) < shape[0] * shape[1] * dtype.itemsize:
                raise InputError(f"expected {num_rows} rows in {where}, found an end after {start}; fetch it again")
            yield Block(np.frombuffer(data, dtype).reshape(shape))


def _open_evaluation(path: Path) -> ScoreFile:
    """Open what `evaluation.predictions` writes; its arrays may be larger than memory, so they are read as streams."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            keys, mids = arrays["keys"], arrays["mids"]
    except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(
            f"{path} is not an evaluation of jobs/evaluate.py, or is cut short: {describe(error)}"
        ) from error

    with zipfile.ZipFile(path) as archive, archive.open("scores.npy") as stream:
        shape, _ = _read_npy_header(stream, str(path))

    def blocks() -> Iterator[Block]:
        with zipfile.ZipFile(path) as opened:
            yield from _read_npy(opened.open("scores.npy"), str(path))

    if shape != (len(keys), len(mids)):
        raise InputError(f"expected {len(keys)} × {len(mids)} scores in {path}, found {shape[0]} × {shape[1]}")
    ids = pa.chunked_array([pa.array(keys.tolist(), pa.string())])
    return ScoreFile(str(path), ids, shape[1], tuple(mids.tolist()), blocks)


def _open_parquet(path: Path) -> ScoreFile:
    """Open a table of ids and a list of scores each, or of values and the numbers of their classes."""
    try:
        file = pq.ParquetFile(path, buffer_size=2**20)
        fields = {field.name: field.type for field in file.schema_arrow}
        lists = {name: kind.value_type for name, kind in fields.items() if isinstance(kind, _LIST_TYPES)}
        values = _only("lists of floats", [name for name, kind in lists.items() if pa.types.is_floating(kind)], fields)
        classes = [name for name, kind in lists.items() if pa.types.is_integer(kind)]
        columns = [values, *([_only("lists of integers", classes, fields)] if classes else [])]
        id_column = _id_column(fields)
        ids = file.read([id_column])[id_column].cast(pa.string())
        first = next(file.iter_batches(1, columns=columns), None)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is cut short or no parquet: {describe(error)}; fetch it again") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    num_classes = None if classes or first is None else len(first.column(0)[0])

    def blocks() -> Iterator[Block]:
        with pq.ParquetFile(path, buffer_size=2**20) as opened:
            for batch in opened.iter_batches(BLOCK_ROWS, columns=columns):
                yield Block(*(_matrix(batch.column(name), f"{path}, column {name}") for name in columns))

    return ScoreFile(str(path), ids, num_classes, (), blocks)


_LIST_TYPES = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)


def _matrix(column: Any, where: str) -> np.ndarray:
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise InputError(f"expected as many values in each row of {where}, found {quote(lengths.tolist())}")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _id_column(fields: Mapping[str, pa.DataType]) -> str:
    # pandas writes a categorical column as a dictionary of its values.
    kinds = {
        name: getattr(kind, "value_type", kind) if pa.types.is_dictionary(kind) else kind
        for name, kind in fields.items()
    }
    text = [name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)]
    named = [name for name in ID_COLUMNS if name in text]
    return named[0] if named else _only("text, the clips' ids,", text, fields)


def _only(what: str, found: list[str], among: Mapping[str, Any]) -> str:
    if len(found) != 1:
        raise InputError(
            f"expected one column of {what} found {quote(', '.join(found)) if found else 'none'} among"
            f" {quote({name: str(kind) for name, kind in among.items()})}"
        )
    return found[0]


def _open_hdf5(path: Path) -> ScoreFile:
    """Open ids and scores, or CED's `topk_values` and `topk_indexes`, whose ids are in a parquet file beside them."""
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"{path} needs a package that is not installed ({error}): pip install '.[hdf5]', or write it as parquet"
            " with a column of ids and one of lists of scores"
        ) from error
    try:
        with h5py.File(path) as file:
            sets: dict[str, h5py.Dataset] = {}
            file.visititems(lambda name, each: sets.update({name: each} if isinstance(each, h5py.Dataset) else {}))
            described = {name: f"{each.dtype}{each.shape}" for name, each in sets.items()}
            matrices = {name: each for name, each in sets.items() if each.ndim == 2}
            values = _only("floats", [name for name, each in matrices.items() if each.dtype.kind == "f"], described)
            classes = [name for name, each in matrices.items() if each.dtype.kind in "iu"]
            columns = [values, *([_only("integers", classes, described)] if classes else [])]
            num_rows, num_classes = sets[values].shape
            text = [name for name, each in sets.items() if each.ndim == 1 and h5py.check_string_dtype(each.dtype)]
            names = [name for name in ID_COLUMNS if name in text] or text
            if names:
                ids = pa.chunked_array([pa.array([each.decode() for each in sets[names[0]][:]], pa.string())])
            else:
                ids = _ids_beside(path)
    except OSError as error:
        raise InputError(f"{path} is cut short or no HDF5: {describe(error)}; fetch it again") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if len(ids) != num_rows:
        raise InputError(f"expected {num_rows} ids for {path}, a row each, found {len(ids)}")

    def blocks() -> Iterator[Block]:
        opened: Any
        with h5py.File(path) as opened:
            for start in range(0, num_rows, BLOCK_ROWS):
                yield Block(*(opened[name][start : start + BLOCK_ROWS] for name in columns))

    return ScoreFile(str(path), ids, None if classes else num_classes, (), blocks)


def _ids_beside(path: Path) -> pa.ChunkedArray:
    beside = path.with_suffix(".parquet")
    if not beside.exists():
        raise InputError(f"expected the clips' ids in it, or in {beside} as CED has them, found neither")
    schema = pq.read_schema(beside)
    name = _id_column({field.name: field.type for field in schema})
    return pq.read_table(beside, columns=[name])[name].cast(pa.string())
