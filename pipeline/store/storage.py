"""Access files under the root of a store, which is a folder or an `s3://` address."""

import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import AudioTaggingError, CorruptError, LeaseError, StoreError, describe_storage_error
from pipeline.store.layout import SCRATCH
from pipeline.store.scratch import ABANDONED_S, clear_scratch, scratch_folder

PIECE_BYTES = 32 * 2**20
"""Number of bytes per request when reading large files. It balances the number of requests against memory."""


@dataclass(frozen=True)
class Store:
    """A root folder or address. Names of files are relative to it and use `/`.

    A file is either missing or complete. Local files are written to a temporary folder and then renamed. Objects are
    written with a single request or a multipart upload that becomes visible when it completes. All errors of the
    storage libraries are converted to StoreError.
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
        """Return the full path of a file, without the protocol."""
        return f"{self.base}/{name}" if name else self.base

    def url(self, name: str) -> str:
        """Return the full address of a file, including the protocol if the store is remote."""
        return self.fs.unstrip_protocol(self.path(name)) if not self.is_local else self.path(name)

    def exists(self, name: str) -> bool:
        with self._errors("look for", name):
            return self.fs.exists(self.path(name))

    def size(self, name: str) -> int:
        with self._errors("look for", name):
            return int(self.fs.size(self.path(name)) or 0)

    def list(self, folder: str, suffix: str = "") -> list[str]:
        """List all visible files below a folder, at any depth and in sorted order. A missing folder has no files."""
        return list(self.sizes(folder, suffix))

    def sizes(self, folder: str, suffix: str = "") -> dict[str, int]:
        """Return the size in bytes of each file that `list` returns, using a single listing."""
        return {name: int(entry["size"]) for name, entry in self._find(folder, suffix).items()}

    def months(self, folder: str, suffix: str = "") -> dict[str, str]:
        """Return the month in which each file was last written, such as `2026-11`, using a single listing."""
        found = {}
        for name, entry in self._find(folder, suffix).items():
            time_or_s = entry.get("mtime", entry.get("LastModified"))  # local files; S3
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
        """Yield the first `num_bytes` of a file in pieces, with one request per piece."""
        for start in range(0, num_bytes, PIECE_BYTES):
            expected = min(PIECE_BYTES, num_bytes - start)
            piece = self.read_range(name, start, expected)
            yield piece
            if len(piece) < expected:
                return

    def open(self, name: str, block_bytes: int) -> BinaryIO:
        """Open a file for reading in blocks. Later reads raise the storage library's own errors instead of
        StoreError."""
        with self._errors("read", name):
            return cast(BinaryIO, self.fs.open(self.path(name), "rb", block_size=block_bytes))

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise CorruptError(f"expected JSON in {self.url(name)}, found: {error}") from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a whole file atomically. An existing file is replaced."""
        if not self.is_local:
            with self._errors("write", name):
                self.fs.pipe_file(self.path(name), data)
            return
        with self.scratch() as folder:
            file = folder / "file"
            with self._errors("write", name):
                file.write_bytes(data)
            self.publish(file, name)

    def write_checked(self, name: str, data: bytes, check: Callable[[], None]) -> None:
        """Replace a file immediately after `check` has returned.

        On S3, the write also fails with a LeaseError if another run has replaced the file since this call began. Stores
        without conditional writes rely on `check` alone.
        """
        if self.is_local:
            with self.scratch() as folder:
                with self._errors("write", name):
                    (folder / "file").write_bytes(data)
                self.publish(folder / "file", name, check)
            return
        with self._errors("write", name):
            version = self._version(name)
            check()
            try:
                self.fs.pipe_file(self.path(name), data, **self._condition(version))
            except OSError:
                if self._version(name) == version:  # no other run wrote; the store may lack conditional writes
                    check()
                    self.fs.pipe_file(self.path(name), data)
                elif self.read_bytes(name) != data:  # equal if a response was lost and the request repeated
                    raise LeaseError(f"{self.url(name)} was replaced by another run; it stays unchanged") from None

    def _version(self, name: str) -> str:
        """Return the ETag of an object, or "" if the object is missing or the store has no ETags."""
        try:
            return str(self.fs.info(self.path(name)).get("ETag", ""))
        except FileNotFoundError:
            return ""

    def _condition(self, version: str) -> dict[str, str]:
        if "s3" not in self.fs.protocol:
            return {}
        return {"IfMatch": version} if version else {"IfNoneMatch": "*"}

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json_bytes(value))

    def create_json(self, name: str, value: Any) -> bool:
        """Write a file unless it exists, and return True if it was written. If several processes try this concurrently,
        exactly one of them gets True."""
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
            if self.fs.exists(self.path(name)):  # s3fs has no error class for a failed precondition
                return False
            raise error
        return True

    def publish(self, file: Path, name: str, check: Callable[[], None] | None = None) -> None:
        """Move a complete local file to its final name, immediately after `check` has returned."""
        with self._errors("write", name):
            if not self.is_local:
                if check:
                    check()
                self.fs.put_file(str(file), self.path(name))
                return
            target = Path(self.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            if check:
                check()
            file.replace(target)

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file from the store to a local path without loading it into memory."""
        with self._errors("read", name):
            self.fs.get_file(self.path(name), str(file))

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """Yield a local path of a file. A remote file is copied to a temporary folder first."""
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
        """Yield a temporary local folder. If the store is local, the folder is on the same disk, so that publishing a
        file only renames it."""
        if not self.is_local:
            clear_scratch(self.scratch_home)
        with ExitStack() as stack:
            with self._errors("write", ""):
                folder = stack.enter_context(scratch_folder(self.scratch_home))
            yield folder

    @property
    def scratch_home(self) -> Path:
        return Path(self.base) / SCRATCH if self.is_local else Path(tempfile.gettempdir())

    def remove_orphaned_files(self) -> None:
        """Remove scratch folders of dead processes and unfinished S3 uploads that are more than a day old."""
        if self.is_local:
            clear_scratch(self.scratch_home)
        elif "s3" in self.fs.protocol:
            from botocore.exceptions import BotoCoreError  # local stores should not import an S3 client

            with suppress(OSError, BotoCoreError):  # a user who may write may not be allowed to list uploads
                self._abort_uploads()

    def _abort_uploads(self) -> None:
        fs: Any = self.fs
        bucket, folder, _ = fs.split_path(self.base)
        found = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/" if folder else "")
        for upload in found.get("Uploads", ()):
            if time.time() - upload["Initiated"].timestamp() > ABANDONED_S:
                fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def age_s(self, name: str) -> float:
        """Return the number of seconds since a file was last written."""
        return time.time() - self.modified_s(name)

    def modified_s(self, name: str) -> float:
        """Return when a file was last written, by the store's clock, in seconds since 1970."""
        with self._errors("look for", name):
            return self.fs.modified(self.path(name)).timestamp()

    def now_s(self) -> float:
        """Return the current time by the store's clock, in seconds since 1970. Writes a temporary file to find it
        out."""
        name = f".clock-{uuid.uuid4().hex}"
        self.write_bytes(name, b"")
        try:
            return self.modified_s(name)
        finally:
            self.remove(name)

    @staticmethod
    def _whole(content: bytes | str) -> bytes:
        assert isinstance(content, bytes), "fsspec's cat_file returns bytes"
        return content

    def check_writable(self) -> None:
        """Raise StoreError if the store is not writable, so that a run fails early instead of after hours of work."""
        name = f".probe-{uuid.uuid4().hex}"
        self.write_bytes(name, b"")
        self.remove(name)

    @contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except AudioTaggingError:
            raise
        except Exception as error:  # every storage library raises its own errors
            raise StoreError(f"can't {verb} {self.root.rstrip('/')}/{name}: {describe_storage_error(error)}") from error


def json_bytes(value: Any) -> bytes:
    """Encode a value as JSON. Equal values have equal bytes."""
    return json.dumps(replace_non_finite(value), indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def replace_non_finite(value: Any) -> Any:
    """Replace NaN and infinite numbers with None, because JSON can't represent them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_non_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(each) for each in value]
    return value
