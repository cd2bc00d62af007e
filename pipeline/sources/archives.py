"""Media that lie together in large files: WebDataset tars and Hugging Face's parquet files, local or at any address."""

import logging
import tarfile
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import braceexpand
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError

from pipeline.config import FetchConfig
from pipeline.errors import InputError, describe, quote
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.index import MediaEntry, MediaIndex, is_media

log = logging.getLogger(__name__)
READ_ERRORS = (OSError, ClientError, BotoCoreError)
"""Errors of reading at any address: fsspec lets its libraries' own through."""
FORMAT_ERRORS = (ValueError, OverflowError, MemoryError)
"""Errors of parsing hostile headers: numbers that no file can hold become sizes, offsets and allocations."""
NUM_READERS = 8
HEADER_BLOCK_BYTES = 2**14
"""Bytes read at once while a tar's headers are listed; the media between them are skipped."""
ID_COLUMNS = ("video_id", "ytid", "youtube_id", "id")
NUM_CACHED_ROW_GROUPS = 2
MAX_ROW_GROUP_BYTES = 2**30


def find_files(pattern: str) -> list[str]:
    """Return the addresses that a pattern matches: `{000..123}` anywhere, `*` and `**` where files can be listed."""
    found: list[str] = []
    try:
        for path in braceexpand.braceexpand(pattern):
            fs, local_path = fsspec.core.url_to_fs(path)
            names = sorted(fs.glob(local_path)) if "*" in path else [local_path]
            found += [fs.unstrip_protocol(name) for name in names]
    except (*READ_ERRORS, ValueError, ImportError) as error:
        raise InputError(f"can't list {pattern}: {describe(error)}") from error
    if not found:
        raise InputError(f"expected files at {pattern}, found none")
    return found


class TarSource:
    """Media within tars, whose members are named as files in a folder are; each holds the segment alone.

    Nothing is unpacked: folders in a member's name are ignored, and links are not followed.
    """

    def __init__(self, pattern: str, config: FetchConfig):
        self.pattern = pattern
        self.config = config
        with ThreadPoolExecutor(NUM_READERS) as pool:
            members = (member for members in pool.map(list_tar, find_files(pattern)) for member in members)
            entries = (MediaEntry.of(member.name, member.tar, member.offset, member.size) for member in members)
            self.index = MediaIndex(entry for entry in entries if entry)
        if not len(self.index):
            raise InputError(
                f"expected media named by their id, such as --PJHxphWEs.flac, in the tars {pattern}; found none"
            )

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        found = self.index.find(segment)
        if found is None:
            return Failure(Reason.NOT_FOUND, f"no member named {segment.ytid}.* in {self.pattern}")
        entry, _ = found
        source = f"{entry.file}/{entry.stem}{entry.extension}"
        if entry.size > self.config.max_media_bytes:
            limit = self.config.max_media_bytes
            return Failure(Reason.TOO_LARGE, f"{source}: {entry.size} bytes, the limit is {limit}")
        try:
            fs, path = fsspec.core.url_to_fs(entry.file)
            content = fs.cat_file(path, start=entry.offset, end=entry.offset + entry.size)
        except READ_ERRORS as error:
            return Failure(Reason.CONNECTION, f"{source}: {describe(error)}")
        if len(content) != entry.size:
            return Failure(Reason.TRUNCATED, f"{source}: {len(content)} of {entry.size} bytes")
        return Media(content, source, offset_ms=segment.start_ms)


@dataclass(frozen=True, slots=True)
class Member:
    """A media file within a tar, and where its bytes lie."""

    tar: str
    name: str
    """With its folders."""
    offset: int
    size: int


def list_tar(file: str) -> list[Member]:
    """List the media of a tar by its headers; a truncated one as far as it goes.

    Raises InputError for a file that is not a tar, or can't be read to its end now.
    """
    members: list[Member] = []
    try:
        fs, path = fsspec.core.url_to_fs(file)
        with (
            fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,  # pyright: ignore[reportCallIssue, reportArgumentType]
        ):
            for member in tar:
                # A negative size leads back to the same header, for ever.
                if tar.offset <= member.offset:
                    raise tarfile.ReadError(f"the member {quote(member.name)} has an impossible size")
                if member.isreg() and is_media(member.name):
                    members.append(Member(file, member.name, member.offset_data, member.size))
                # Otherwise all headers stay in memory.
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
    except tarfile.TarError as error:
        if not members:
            raise InputError(f"expected a tar at {file}, found: {describe(error)}") from error
        log.warning("%s is truncated or damaged after %d media: %s", file, len(members), describe(error))
    except (*READ_ERRORS, *FORMAT_ERRORS) as error:  # a ValueError is also a server that sends no ranges
        raise InputError(f"can't read the tar {file}: {describe(error)}") from error
    return members


class ParquetSource:
    """Media in parquet files as Hugging Face keeps them: an id column and `audio` with its `bytes`, already cut.

    A row can't be read without its row group, so the last few stay in memory; files in the segments' order read best.
    """

    def __init__(self, pattern: str, config: FetchConfig):
        self.pattern = pattern
        self.config = config
        with ThreadPoolExecutor(NUM_READERS) as pool:
            self.index = MediaIndex(e for entries in pool.map(_list_parquet, find_files(pattern)) for e in entries)
        if not len(self.index):
            raise InputError(f"expected rows with an id and audio in {pattern}, found none")
        self._open_cache()

    def _open_cache(self) -> None:
        self._groups: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("pattern", "config", "index")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_cache()

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        found = self.index.find(segment)
        if found is None:
            return Failure(Reason.NOT_FOUND, f"no row of {segment.ytid} in {self.pattern}")
        entry, _ = found
        try:
            content = self._group(entry.file, entry.offset)[entry.size].as_py()
        # The file may have been replaced since it was listed: then a row, a column or its type is missing.
        except (*READ_ERRORS, *FORMAT_ERRORS, pa.ArrowException, KeyError, IndexError) as error:
            return Failure(Reason.CONNECTION, f"{entry.file}: {describe(error)}")
        if not content:
            return Failure(Reason.NO_AUDIO, f"{entry.file}: the row of {segment.ytid} holds no bytes")
        if len(content) > self.config.max_media_bytes:
            limit = self.config.max_media_bytes
            return Failure(Reason.TOO_LARGE, f"{entry.file}: {len(content)} bytes, the limit is {limit}")
        return Media(content, f"{entry.file}/{entry.stem}", offset_ms=segment.start_ms)

    def _group(self, file: str, group: int) -> pa.Array:
        """Return the audio bytes of a row group."""
        with self._lock:
            if (file, group) not in self._groups:
                while len(self._groups) >= NUM_CACHED_ROW_GROUPS:
                    self._groups.popitem(last=False)
                self._groups[file, group] = _read_row_group(file, group)
            self._groups.move_to_end((file, group))
            return self._groups[file, group]


def _list_parquet(file: str) -> list[MediaEntry]:
    """List the rows of a parquet file; place and size of an entry are row group and row.

    Raises InputError if it can't be read, or its columns have other names or types than audio needs.
    """
    try:
        with fsspec.open(file, "rb") as stream, pq.ParquetFile(stream) as parquet:
            column = _id_column(parquet.schema_arrow, file)
            entries = [
                MediaEntry(ytid, file, "", group, row)
                for group in range(parquet.num_row_groups)
                for row, ytid in enumerate(parquet.read_row_group(group, [column])[column].to_pylist())
                if ytid is not None
            ]
            if num_without := parquet.metadata.num_rows - len(entries):
                log.warning("%s: left out %d rows without an id", file, num_without)
            return entries
    except (*READ_ERRORS, *FORMAT_ERRORS, pa.ArrowException) as error:
        raise InputError(f"expected parquet at {file}, found: {describe(error)}") from error


def _id_column(schema: pa.Schema, file: str) -> str:
    """Return the column of ids, after checking its type and that of `audio`.

    Types are checked rather than values: text in `audio` would otherwise be taken for a path by whoever decodes it.
    """
    found = {name: schema.types[schema.names.index(name)] for name in schema.names if schema.names.count(name) == 1}
    column = next((name for name in ID_COLUMNS if name in found and _is_text(found[name])), None)
    audio = found.get("audio")
    if audio is not None and pa.types.is_struct(audio):
        audio = audio.field("bytes").type if audio.get_field_index("bytes") >= 0 else None
    if column is None or audio is None or not (pa.types.is_binary(audio) or pa.types.is_large_binary(audio)):
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise InputError(
            f"{file}: expected the columns audio (binary, or a struct with binary `bytes`) and one of"
            f" {', '.join(ID_COLUMNS)} (string), found {quote(columns)}"
        )
    return column


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)


def _read_row_group(file: str, group: int) -> pa.Array:
    """Return the audio of a row group, as bytes whatever the file holds by now."""
    with fsspec.open(file, "rb") as stream, pq.ParquetFile(stream) as parquet:
        num_bytes = parquet.metadata.row_group(group).total_byte_size
        if num_bytes > MAX_ROW_GROUP_BYTES:
            raise OSError(f"row group {group} has {num_bytes} bytes, the limit is {MAX_ROW_GROUP_BYTES}")
        audio = parquet.read_row_group(group, ["audio"])["audio"].combine_chunks()
    return (audio.field("bytes") if pa.types.is_struct(audio.type) else audio).cast(pa.large_binary())
