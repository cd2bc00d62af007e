"""Cache the shards of a remote store on the disk of a node. All processes of the node share the cache.

Cached files are named by digests. Only one process at a time fetches a given shard. It verifies the checksum before it
renames the file to its final name, so files that killed processes left behind are never read.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, StoreError
from pipeline.shards.checksum import Checksum, verify_checksum
from pipeline.store.storage import Store


@dataclass(frozen=True)
class ShardCache:
    """A folder with limited size that caches the shards of a snapshot. Several snapshots may share the folder."""

    folder: Path
    max_bytes: int
    store: Store
    checksums: Mapping[str, Checksum]

    def check(self) -> None:
        """Create the folder. Raises ConfigError if it is not writable or its limit is smaller than the largest
        shard."""
        largest = max(checksum.num_bytes for checksum in self.checksums.values())
        if self.max_bytes < largest:
            raise ConfigError(
                f"the cache is limited to {self.max_bytes} bytes, but the largest shard has {largest} bytes; raise"
                " --train.cache.max-gb, or set --train.cache.folder to '' to read without a cache"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock("room"):
                # Write a probe file, because permissions and free space do not reveal quotas.
                probe = self.folder / "probe"
                probe.write_bytes(b"0" * 4096)
                probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"can't write to the cache folder {self.folder}: {error}; set --train.cache.folder to"
                " one that is writable and has space, or to '' to read without a cache"
            ) from error

    def find(self, name: str) -> Path | None:
        """Return the path of a shard and record that it is used, or return None if it is not cached."""
        file = self._file(name)
        try:
            # Set the time explicitly, because file systems mounted with relatime often do not update it on reads.
            os.utime(file)
        except FileNotFoundError:
            return None
        return file

    def fetch(self, name: str) -> Path:
        """Return the path of a cached shard, and fetch the shard first if it is missing.

        Raises CorruptError if the shard differs from the index, and StoreError if it can't be read or cached.
        """
        if found := self.find(name):
            return found
        try:
            with self._lock(self.checksums[name].digest):
                # Look again: the previous holder of the lock has probably fetched this shard.
                return self.find(name) or self._download(name)
        except OSError as error:
            raise StoreError(f"can't store {name} in the cache folder {self.folder}: {error}") from error

    def drop(self, name: str) -> None:
        """Remove a shard from the cache, for example because it is damaged."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.checksums[name].digest}.tar"

    def _download(self, name: str) -> Path:
        checksum, target = self.checksums[name], self._file(name)
        part = target.with_suffix(".part")
        try:
            self._make_room(part, checksum.num_bytes)
            verify_checksum(self._copy(name, part), checksum, self.store, name)
            # Rename the file under the lock. Otherwise, a process that is listing the folder could miss the file under
            # both names and overfill the cache.
            with self._lock("room"):
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _copy(self, name: str, part: Path) -> Checksum:
        """Copy a shard into its reserved file, flush it to disk, and return the checksum of the copied bytes."""
        digest, num_bytes = hashlib.sha256(), 0
        # Don't truncate the file, because other processes count its size as reserved space.
        with part.open("r+b") as stream:
            for piece in self.store.read_pieces(name, self.checksums[name].num_bytes):
                digest.update(piece)
                num_bytes += stream.write(piece)
            # Flush the file before it is renamed. Otherwise, the final name could refer to bytes that never reached the
            # disk if the power fails.
            stream.flush()
            os.fsync(stream.fileno())
        return Checksum(num_bytes, digest.hexdigest())

    def _make_room(self, part: Path, num_bytes: int) -> None:
        """Evict the least recently used shards, then reserve space with a sparse file as large as the shard."""
        with self._lock("room"):
            held = sorted(self._held(besides=part))
            total = sum(size for _, size, _ in held)
            for _, size, file in held:
                if total + num_bytes <= self.max_bytes:
                    break
                # Evict only complete files. Readers can still use a file that they have opened. Partial files reserve
                # space for other processes.
                if file.suffix == ".tar":
                    file.unlink(missing_ok=True)
                    total -= size
            with part.open("wb") as stream:
                os.truncate(stream.fileno(), num_bytes)

    def _held(self, besides: Path) -> Iterator[tuple[int, int, Path]]:
        """Yield the time of last use, the size and the path of each file. Files that another process removes meanwhile
        are skipped."""
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if file != besides:
                    stat = file.stat()
                    yield stat.st_mtime_ns, stat.st_size, file

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold a lock that all processes and threads of the node share. The lock is released if its holder dies."""
        with (self.folder / f"{name}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
