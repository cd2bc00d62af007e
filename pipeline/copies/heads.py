"""Read the first members of a container with a few requests."""

import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.copies.containers import Container
from pipeline.copies.members import find_columns, read_members
from pipeline.errors import InputError, describe
from pipeline.sources.index import is_hidden, is_media
from pipeline.sources.names import stem_of

MAX_MEMBERS = 1000
MAX_TAR_MEMBERS, MAX_TAR_BYTES = 32, 2**23
"""Limits for reading the head of a tar. They are needed because the names in a tar are spread over the whole file."""
READ_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Head:
    """The first members of a container."""

    stems: list[str]
    """The members' names without folders and extensions, or their ids from a column or from JSON."""
    num_members: int
    """Number of members in the whole container. For tars, this is an estimate."""


def read_head(container: Container) -> Head:
    """Read the names of a container's first members.

    They come from the first megabytes of a tar, the directory of a zip, or the parquet file's footer and id column.
    Raises InputError if the format is wrong, or one of `READ_ERRORS`.
    """
    if container.kind.startswith("tar"):
        return _head_of_tar(container)
    fs, path = fsspec.core.url_to_fs(container.location)
    remote = (
        {"block_size": READ_BYTES} if "://" in container.location and not container.location.startswith("file:") else {}
    )
    try:
        with fs.open(path, "rb", **remote) as stream:
            return (_head_of_zip if container.kind == "zip" else _head_of_parquet)(stream, container)
    except (zipfile.BadZipFile, zlib.error, EOFError, pa.ArrowInvalid) as error:
        raise InputError(f"expected a {container.kind} at {container.address}, found: {describe(error)}") from error


def _head_of_tar(container: Container) -> Head:
    stems, num_bytes = list[str](), 0
    for member in read_members(container, Path(), MAX_TAR_BYTES):
        stems.append(member.stem)
        content = member.content if isinstance(member.content, bytes) else b""
        num_bytes += tarfile.BLOCKSIZE + -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if len(stems) == MAX_TAR_MEMBERS or num_bytes >= MAX_TAR_BYTES:
            return Head(stems, max(len(stems), round(container.num_bytes / num_bytes * len(stems))))
    return Head(stems, len(stems))


def _head_of_zip(stream: Any, container: Container) -> Head:
    with zipfile.ZipFile(stream) as archive:
        names = [name for name in archive.namelist() if is_media(name) and not is_hidden(name)]
    return Head([stem_of(PurePosixPath(name).name) for name in names[:MAX_MEMBERS]], len(names))


def _head_of_parquet(stream: Any, container: Container) -> Head:
    with pq.ParquetFile(stream, buffer_size=READ_BYTES, pre_buffer=False) as parquet:
        id_column, _ = find_columns(parquet.schema_arrow, container.address)
        batches = parquet.iter_batches(MAX_MEMBERS, columns=[id_column], use_threads=False)
        ids = next((batch[id_column].to_pylist() for batch in batches), [])
        return Head([stem_of(str(each)) for each in ids if each], parquet.metadata.num_rows)
