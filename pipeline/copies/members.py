"""Read the clips of a container once, from front to back.

Nothing is unpacked to a path. Folders in the names of members are ignored, and links are not followed.
"""

import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.copies.containers import Container
from pipeline.copies.hub import HUB
from pipeline.errors import InputError, describe, quote
from pipeline.records import Failure, Reason
from pipeline.sources.archives import check_end
from pipeline.sources.index import is_media
from pipeline.sources.names import stem_of

ID_FIELDS = ("video_id", "ytid", "youtube_id", "id")
"""Names of id columns in parquet files, and of id fields in the JSON files next to the media in a tar."""
AUDIO_COLUMNS = ("audio", "opus", "flac", "mp3", "wav")
BATCH_ROWS = 8
"""Number of rows of a parquet file that are held in memory. Row groups are often gigabytes large."""
BUFFER_BYTES = 2**20
COPY_BYTES = 2**22
MAX_COMPRESSION = 1100
"""Maximum compression ratio of a tar. The highest ratio of gzip is about 1,030."""


@dataclass(frozen=True, slots=True)
class Member:
    """A clip in a container."""

    name: str
    stem: str
    """The name without folders and extensions, or the id from a column or from the JSON file next to the media."""
    content: bytes | Failure


def read_members(container: Container, scratch: Path, max_media_bytes: int) -> Iterator[Member]:
    """Yield the clips of a container in their order.

    Remote tars are streamed in a single request. Zips and parquet files have their directory at the end, so remote
    files are first copied to `scratch`, also in a single request. If a member is broken, it becomes a failure. Raises
    OSError if the container can't be read, and InputError if its content does not match its extension.
    """
    read = {"tar": _read_tar, "tar.gz": _read_tar, "zip": _read_zip, "parquet": _read_parquet}[container.kind]
    try:
        if container.kind.startswith("tar"):
            with _open(container) as stream:
                yield from read(stream, container, max_media_bytes)
        else:
            with _local_file(container, scratch) as file, file.open("rb") as stream:
                yield from read(stream, container, max_media_bytes)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, pa.ArrowInvalid) as error:
        raise InputError(f"expected a {container.kind} at {container.address}, found: {describe(error)}") from error


def _open(container: Container) -> Any:
    """Open a container to read it from front to back."""
    fs, path = fsspec.core.url_to_fs(container.location)
    # For HTTP and the hub, block size 0 makes fsspec send a single request without ranges. Passing the known size saves
    # another request.
    if container.location.startswith(HUB):
        return fs.open(path, "rb", block_size=0)
    if container.location.startswith("http"):
        return fs.open(path, "rb", block_size=0, size=container.num_bytes or None)
    return fs.open(path, "rb")


@contextmanager
def _local_file(container: Container, scratch: Path) -> Iterator[Path]:
    if container.location.startswith("file://"):
        yield Path(container.location.removeprefix("file://"))
        return
    copy = scratch / "container"
    try:
        with _open(container) as stream, copy.open("wb") as out:
            while block := stream.read(COPY_BYTES):
                out.write(block)
        if container.num_bytes and copy.stat().st_size != container.num_bytes:
            raise OSError(f"{container.address}: {copy.stat().st_size} of {container.num_bytes} bytes arrived")
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _read_tar(stream: BinaryIO, container: Container, max_media_bytes: int) -> Iterator[Member]:
    """Yield the media in a tar. A JSON file with the same stem, before or after the media, may contain the id."""
    stem, media, stated = "", None, ""
    max_bytes = (container.num_bytes or 2**30) * MAX_COMPRESSION
    # `r|*` detects compression, because some compressed tars have the extension `.tar`.
    with tarfile.open(fileobj=stream, mode="r|*") as tar:
        for info in tar:
            # Drop the headers, which tarfile keeps for lookups by name. For 100,000 clips, they would take much memory.
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
            # A member with a negative size would lead back to its own header. With a huge size, the search for the next
            # header would never end.
            if not info.offset < tar.offset <= max_bytes:
                raise tarfile.ReadError(f"the member {quote(info.name)} has an impossible size")
            path = PurePosixPath(info.name)
            if not info.isreg() or path.name.startswith("."):
                continue
            if stem_of_sibling(path) != stem:
                if media:
                    yield Member(media[0], stated or stem_of(media[0]), media[1])
                stem, media, stated = stem_of_sibling(path), None, ""
            if is_media(path.name):
                media = (info.name, _read_member(tar, info, max_media_bytes))
            elif path.suffix == ".json" and info.size < 2**20:
                stated = _stated_id(tar.extractfile(info))
        if media:
            yield Member(media[0], stated or stem_of(media[0]), media[1])
        check_end(tar.fileobj)


def stem_of_sibling(path: PurePosixPath) -> str:
    """Return the stem that all files of one clip in a WebDataset tar share."""
    return str(path.with_suffix(""))


def _read_member(tar: tarfile.TarFile, info: tarfile.TarInfo, max_media_bytes: int) -> bytes | Failure:
    if info.size > max_media_bytes:
        return Failure(Reason.TOO_LARGE, f"{quote(info.name)}: {info.size} bytes, the limit is {max_media_bytes}")
    stream = tar.extractfile(info)
    assert stream, "only regular members get here"
    return stream.read()


def _stated_id(stream: Any) -> str:
    """Return the id in a JSON object, or "" if the object has no id."""
    try:
        fields = json.loads(stream.read())
    except ValueError:
        return ""
    values = [fields.get(name) for name in ID_FIELDS] if isinstance(fields, dict) else []
    return next((value for value in values if isinstance(value, str)), "")


def _read_zip(stream: BinaryIO, container: Container, max_media_bytes: int) -> Iterator[Member]:
    with zipfile.ZipFile(stream) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
            name = PurePosixPath(info.filename).name
            if info.is_dir() or not is_media(name) or name.startswith("."):
                continue
            if info.file_size > max_media_bytes:  # `ZipFile.read` enforces this size, which stops zip bombs
                detail = f"{quote(info.filename)}: {info.file_size} bytes, the limit is {max_media_bytes}"
                yield Member(info.filename, stem_of(name), Failure(Reason.TOO_LARGE, detail))
                continue
            try:
                content: bytes | Failure = archive.read(info)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                content = Failure(Reason.NOT_MEDIA, f"{quote(info.filename)} is damaged: {describe(error)}")
            yield Member(info.filename, stem_of(name), content)


def _read_parquet(stream: BinaryIO, container: Container, max_media_bytes: int) -> Iterator[Member]:
    with pq.ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet:
        id_column, audio_column = find_columns(parquet.schema_arrow, container.address)
        batches = parquet.iter_batches(BATCH_ROWS, columns=[id_column, audio_column], use_threads=False)
        for row in (row for batch in batches for row in batch.to_pylist()):
            audio, stated = row[audio_column], row[id_column]
            content = audio.get("bytes") if isinstance(audio, dict) else audio
            if not stated:
                continue
            if not content:
                content = Failure(Reason.NO_AUDIO, f"the row of {quote(stated)} holds no bytes")
            elif len(content) > max_media_bytes:
                content = Failure(Reason.TOO_LARGE, f"{len(content)} bytes, the limit is {max_media_bytes}")
            yield Member(str(stated), stem_of(str(stated)), content)


def find_columns(schema: pa.Schema, address: str) -> tuple[str, str]:
    """Return the columns that contain ids and audio. Raises InputError, which lists all columns, if either is missing.

    This checks types instead of values, because a text in an audio column would be a path on another machine.
    """
    types = {name: schema.field(name).type for name in schema.names if schema.names.count(name) == 1}
    ids = [name for name in (*ID_FIELDS, "path") if _is_text(types.get(name))]
    audio = [name for name in AUDIO_COLUMNS if name in types and _is_binary(types[name])]
    if not ids or not audio:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise InputError(
            f"{address}: expected audio (binary, or a struct with binary `bytes`, named {', '.join(AUDIO_COLUMNS)}) and"
            f" ids (string, named {', '.join(ID_FIELDS)} or path), found {quote(columns)}"
        )
    return ids[0], audio[0]


def _is_text(type_: pa.DataType | None) -> bool:
    return type_ is not None and (pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _is_binary(type_: pa.DataType) -> bool:
    if pa.types.is_struct(type_):
        return type_.get_field_index("bytes") >= 0 and _is_binary(type_.field("bytes").type)
    return pa.types.is_binary(type_) or pa.types.is_large_binary(type_)
