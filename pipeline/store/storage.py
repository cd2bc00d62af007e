"""The store: one folder or `s3://` address under which everything that is kept has its place."""

import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import AudioTaggingError, CorruptError, StoreError, describe_storage_error
from pipeline.store.scratch import ABANDONED_S, clear_scratch, scratch_folder

PIECE_BYTES = 32 * 2**20
"""Of a large file that is read in pieces: few requests, little memory."""


@dataclass(frozen=True)
class Store:
    """A root and what can be done under it. Names are relative to the root, with `/`.

    A name is either absent or complete: files are written elsewhere and then renamed (local) or put in one
    request or one completed upload (object stores). All errors of the storage become `StoreError`.
    """

    root: str

    @cached_property
    def fs(self) -> fsspec.AbstractFileSystem:
        with self._errors("open", ""):
            return fsspec.core.url_to_fs(self.root, use_listings_cache=False)[0]

    @cached_property
    def base(self) -> str:
        return fsspec.core.url_to_fs(self.root)[1].rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        return {"root": self.root}

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Full path of a name, without the protocol."""
        return f"{self.base}/{name}" if name else self.base

    def url(self, name: str) -> str:
        """Full address of a name, with the protocol where it isn't local."""
        return self.fs.unstrip_protocol(self.path(name)) if not self.is_local else self.path(name)

    def exists(self, name: str) -> bool:
        with self._errors("look for", name):
            return self.fs.exists(self.path(name))

    def size(self, name: str) -> int:
        with self._errors("look for", name):
            return int(self.fs.size(self.path(name)) or 0)

    def list(self, folder: str, suffix: str = "") -> list[str]:
        """Names under a folder, at any depth, sorted, without hidden ones; none if there is no such folder."""
        return list(self.sizes(folder, suffix))

    def sizes(self, folder: str, suffix: str = "") -> dict[str, int]:
        """Bytes of each file that `list` names, in one listing."""
        return {name: int(entry["size"]) for name, entry in self._find(folder, suffix).items()}

    def months(self, folder: str, suffix: str = "") -> dict[str, str]:
        """Month in which each file that `list` names was last written, such as `2026-11`, in one listing."""
        found = {}
        for name, entry in self._find(folder, suffix).items():
            time_or_s = entry.get("mtime", entry.get("LastModified"))  # of local files; of S3
            when = datetime.fromtimestamp(time_or_s, UTC) if isinstance(time_or_s, float) else time_or_s
            found[name] = when.strftime("%Y-%m") if when else "unknown"
        return found

    def _find(self, folder: str, suffix: str) -> dict[str, dict[str, Any]]:
        with self._errors("list", folder):
            found = self.fs.find(self.path(folder), detail=True)
        assert isinstance(found, dict), "fsspec's find returns a dict with details"
        names = {path[len(self.base) + 1 :]: entry for path, entry in sorted(found.items())}
        return {name: entry for name, entry in names.items() if name.endswith(suffix) and "/." not in f"/{name}"}

    def read_bytes(self, name: str) -> bytes:
        with self._errors("read", name):
            return self._whole(self.fs.cat_file(self.path(name)))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        with self._errors("read", name):
            return self._whole(self.fs.cat_file(self.path(name), start=offset, end=offset + length))

    def read_pieces(self, name: str, num_bytes: int) -> Iterator[bytes]:
        """Yield the first `num_bytes` of a file, each piece read with one request; less if the file ends before."""
        for start in range(0, num_bytes, PIECE_BYTES):
            expected = min(PIECE_BYTES, num_bytes - start)
            piece = self.read_range(name, start, expected)
            yield piece
            if len(piece) < expected:
                return

    def open(self, name: str, block_bytes: int) -> BinaryIO:
        """Open a file to read parts of it, in blocks. What goes wrong then is an error of the storage's own."""
        with self._errors("read", name):
            return cast(BinaryIO, self.fs.open(self.path(name), "rb", block_size=block_bytes))

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise CorruptError(f"expected JSON in {self.url(name)}, found: {error}") from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file at once; an older one of that name is replaced."""
        if not self.is_local:
            with self._errors("write", name):
                self.fs.pipe_file(self.path(name), data)
            return
        with self.scratch() as folder:
            file = folder / "file"
            with self._errors("write", name):
                file.write_bytes(data)
            self.publish(file, name)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json_bytes(value))

    def create_json(self, name: str, value: Any) -> bool:
        """Write a file only if there is none of that name; of several that try, one is told that it did."""
        data = json_bytes(value)
        with self._errors("write", name):
            if not self.is_local:
                return self._create_object(name, data)
            with self.scratch() as folder:
                (folder / "file").write_bytes(data)
                target = Path(self.path(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.hardlink_to(folder / "file")
                except FileExistsError:
                    return False
                return True

    def _create_object(self, name: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(self.path(name), data, mode="create")
        except OSError as error:
            if self.fs.exists(self.path(name)):  # s3fs has no class of its own for a refused condition
                return False
            raise error
        return True

    def publish(self, file: Path, name: str) -> None:
        """Move a complete local file to its final name."""
        with self._errors("write", name):
            if not self.is_local:
                self.fs.put_file(str(file), self.path(name))
                return
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            file.replace(target)

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file of the store to a local one, in bounded memory."""
        with self._errors("read", name):
            self.fs.get_file(self.path(name), str(file))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """Make a file readable under a local path: its own, or that of a copy which is gone afterwards."""
        if self.is_local:
            yield Path(self.path(name))
            return
        with self.scratch() as folder:
            self.fetch(name, folder / "copy")
            yield folder / "copy"

    def remove(self, name: str) -> None:
        with self._errors("remove", name):
            self.fs.rm(self.path(name), recursive=True)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new local folder, gone afterwards; on the store's own disk if that is local, so that a move is a
        rename."""
        if not self.is_local:
            clear_scratch(self.scratch_home)
        with ExitStack() as stack:
            with self._errors("write", ""):
                folder = stack.enter_context(scratch_folder(self.scratch_home))
            yield folder

    @property
    def scratch_home(self) -> Path:
        return Path(self.base) / ".scratch" if self.is_local else Path(tempfile.gettempdir())

    def remove_orphaned_files(self) -> None:
        """Remove what dead processes were writing when they died: scratch folders, and uploads to S3 of a day ago."""
        if self.is_local:
            clear_scratch(self.scratch_home)
        elif "s3" in self.fs.protocol:
            from botocore.exceptions import BotoCoreError  # a store in a folder does without an S3 client

            with suppress(OSError, BotoCoreError):  # not all that may write may look for uploads
                self._abort_uploads()

    def _abort_uploads(self) -> None:
        fs: Any = self.fs
        bucket, folder, _ = fs.split_path(self.base)
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/" if folder else "")
        for upload in found.get("Uploads", ()):
            if time.time() - upload["Initiated"].timestamp() > ABANDONED_S:
                fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def age_s(self, name: str) -> float:
        """Seconds since a file was written."""
        with self._errors("look for", name):
            return time.time() - self.fs.modified(self.path(name)).timestamp()

    @staticmethod
    def _whole(content: bytes | str) -> bytes:
        assert isinstance(content, bytes), "fsspec's cat_file returns bytes"
        return content

    def check_writable(self) -> None:
        """Raise StoreError now rather than after hours of work."""
        name = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(name, b"")
        self.remove(name)

    @contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except AudioTaggingError:
            raise
        except Exception as error:  # each storage library has errors of its own
            raise StoreError(f"can't {verb} {self.root.rstrip('/')}/{name}: {describe_storage_error(error)}") from error


def json_bytes(value: Any) -> bytes:
    """Return a file's content: the same value always has the same bytes."""
    return json.dumps(replace_non_finite(value), indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def replace_non_finite(value: Any) -> Any:
    """Replace NaN and infinite numbers by None, because JSON has no notation for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_non_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(each) for each in value]
    return value
