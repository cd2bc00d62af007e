"""Media that lie together in large files: WebDataset tars and Hugging Face's parquet files, local or at any address."""

import logging
import tarfile
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import braceexpand
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import ClientError
from botocore.exceptions import BotoCoreError

from pipeline.config import FetchConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.index import Entry, MediaIndex

log = logging.getLogger(__name__)
READ_ERRORS = (OSError, ClientError, BotoCoreError)
"""Of reading at any address: fsspec lets its libraries' own errors through."""
NUM_READERS = 8
HEADER_BLOCK_BYTES = 2**14
"""Read at once while a tar's headers are looked through; what lies between them is skipped."""
ID_COLUMNS = ("video_id", "ytid", "youtube_id", "id")
NUM_CACHED_ROW_GROUPS = 2
MAX_ROW_GROUP_BYTES = 2**30


def find_files(pattern: str) -> list[str]:
    """Return the addresses that a pattern stands for: `{000..123}` anywhere, `*` and `**` where files can be listed."""
    found: list[str] = []
    try:
        for path in braceexpand.braceexpand(pattern):
            fs, local_path = fsspec.core.url_to_fs(path)
            names = sorted(fs.glob(local_path)) if "*" in path else [local_path]
            found += [fs.unstrip_protocol(name) for name in names]
    except (*READ_ERRORS, ValueError, ImportError) as error:
        raise InputError(f"can't list {pattern}: {type(error).__name__}: {error}") from error
    if not found:
        raise InputError(f"expected files at {pattern}, found none")
    return found


class TarSource:
    """Media within tars, whose members are named as files in a folder are; they hold the segment alone.

    Nothing is unpacked, so a member's folders and links lead nowhere: folders don't count, links are no media.
    """

    def __init__(self, pattern: str, config: FetchConfig):
        self.pattern = pattern
        self.config = config
        with ThreadPoolExecutor(NUM_READERS) as pool:
            self.index = MediaIndex(entry for entries in pool.map(_list_tar, find_files(pattern)) for entry in entries)
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
            content = fs.cat_file(path, start=entry.place, end=entry.place + entry.size)
        except READ_ERRORS as error:
            return Failure(Reason.CONNECTION, f"{source}: {type(error).__name__}: {error}")
        if len(content) != entry.size:
            return Failure(Reason.TRUNCATED, f"{source}: {len(content)} of {entry.size} bytes")
        return Media(content, source, offset_ms=segment.start_ms)


def _list_tar(file: str) -> list[Entry]:
    """List the media of a tar by its headers; one that breaks off is listed so far.

    Raises InputError if it is none, or can't be read to its end now.
    """
    entries: list[Entry] = []
    try:
        fs, path = fsspec.core.url_to_fs(file)
        with (
            fs.open(path, "rb", block_size=HEADER_BLOCK_BYTES) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,  # pyright: ignore[reportCallIssue, reportArgumentType]
        ):
            for member in tar:
                entry = Entry.of(member.name, file, member.offset_data, member.size) if member.isreg() else None
                if entry:
                    entries.append(entry)
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # else all headers stay in memory
    except (*READ_ERRORS, ValueError) as error:  # such as a server that sends no ranges
        raise InputError(f"can't read the tar {file}: {type(error).__name__}: {error}") from error
    except tarfile.TarError as error:
        if not entries:
            raise InputError(f"expected a tar at {file}, found: {type(error).__name__}: {error}") from error
        log.warning("%s breaks off after %d media: %s", file, len(entries), error)
    return entries


class ParquetSource:
    """Media in parquet files as Hugging Face keeps them: an id column and `audio` with its `bytes`; cut already.

    A row can't be read without its row group, so the last few are kept; files in the segments' order read best.
    """

    def __init__(self, pattern: str, config: FetchConfig):
        self.pattern = pattern
        self.config = config
        with ThreadPoolExecutor(NUM_READERS) as pool:
            self.index = MediaIndex(e for entries in pool.map(_list_parquet, find_files(pattern)) for e in entries)
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
            content = self._group(entry.file, entry.place)[entry.size].as_py()
        except (*READ_ERRORS, pa.ArrowException, KeyError, IndexError, TypeError) as error:
            return Failure(Reason.CONNECTION, f"{entry.file}: {type(error).__name__}: {error}")
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


def _list_parquet(file: str) -> list[Entry]:
    """List the rows of a parquet file; place and size of an entry are row group and row."""
    try:
        with fsspec.open(file, "rb") as stream, pq.ParquetFile(stream) as parquet:
            names = parquet.schema_arrow.names
            column = next((name for name in ID_COLUMNS if name in names), None)
            if column is None or "audio" not in names:
                raise InputError(
                    f"{file}: expected the columns audio and one of {', '.join(ID_COLUMNS)}, found {names}"
                )
            return [
                Entry(ytid, file, "", group, row)
                for group in range(parquet.num_row_groups)
                for row, ytid in enumerate(parquet.read_row_group(group, [column])[column].to_pylist())
            ]
    except (*READ_ERRORS, pa.ArrowException) as error:
        raise InputError(f"expected parquet at {file}, found: {type(error).__name__}: {error}") from error


def _read_row_group(file: str, group: int) -> pa.Array:
    with fsspec.open(file, "rb") as stream, pq.ParquetFile(stream) as parquet:
        num_bytes = parquet.metadata.row_group(group).total_byte_size
        if num_bytes > MAX_ROW_GROUP_BYTES:
            raise OSError(f"row group {group} has {num_bytes} bytes, the limit is {MAX_ROW_GROUP_BYTES}")
        audio = parquet.read_row_group(group, ["audio"])["audio"].combine_chunks()
    return audio.field("bytes") if pa.types.is_struct(audio.type) else audio
