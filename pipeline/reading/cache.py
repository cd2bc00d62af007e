"""Shards of a remote store on the node's own disk, shared by the node's processes.

A shard is named by its digest, fetched by one process at a time, compared with its checksum and only then renamed to
the name under which it is read. So what a killed process leaves behind is never read.
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
    """A folder with a limit, for the shards of one snapshot. Other snapshots may use the same folder."""

    folder: Path
    max_bytes: int
    store: Store
    checksums: Mapping[str, Checksum]

    def check(self) -> None:
        """Make the folder. Raises ConfigError if it can't be used, or holds less than one shard."""
        largest = max(checksum.num_bytes for checksum in self.checksums.values())
        if self.max_bytes < largest:
            raise ConfigError(
                f"the cache may hold {self.max_bytes} bytes, but the largest shard has {largest}; raise"
                " --train.cache.max-gb, or set --train.cache.folder to '' to read without a cache"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._lock("room"):
                # Only a write tells: neither permissions nor the free space know of quotas.
                probe = self.folder / "probe"
                probe.write_bytes(b"0" * 4096)
                probe.unlink()
        except OSError as error:
            raise ConfigError(
                f"can't write to the cache folder {self.folder}: {error}; set --train.cache.folder to"
                " one that is writable and has space, or to '' to read without a cache"
            ) from error

    def find(self, name: str) -> Path | None:
        """Return where a shard lies, and note its use; None if it isn't there."""
        file = self._file(name)
        try:
            # By hand, since most disks are mounted with relatime, under which reading notes no time of access.
            os.utime(file)
        except FileNotFoundError:
            return None
        return file

    def fetch(self, name: str) -> Path:
        """Return where a shard lies, after fetching it if need be.

        Raises CorruptError if the store's shard is not the indexed one, StoreError if it can't be read or kept.
        """
        if found := self.find(name):
            return found
        try:
            with self._lock(self.checksums[name].digest):
                # Looked for again: the process that held the lock has probably fetched it.
                return self.find(name) or self._download(name)
        except OSError as error:
            raise StoreError(f"can't keep {name} in the cache folder {self.folder}: {error}") from error

    def drop(self, name: str) -> None:
        """Remove a shard, for instance one that turned out to be damaged."""
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.checksums[name].digest}.tar"

    def _download(self, name: str) -> Path:
        checksum, target = self.checksums[name], self._file(name)
        part = target.with_suffix(".part")
        try:
            self._make_room(part, checksum.num_bytes)
            verify_checksum(self._copy(name, part), checksum, self.store, name)
            # Under the lock, or whoever lists the folder right now finds the file under neither name, and overfills it.
            with self._lock("room"):
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _copy(self, name: str, part: Path) -> Checksum:
        """Copy a shard to its claimed place, down to the device, and return the checksum of what came."""
        digest, num_bytes = hashlib.sha256(), 0
        # Not truncated: the empty file's size is the claim that other processes count.
        with part.open("r+b") as stream:
            for piece in self.store.read_pieces(name, self.checksums[name].num_bytes):
                digest.update(piece)
                num_bytes += stream.write(piece)
            # Before the rename: after a power cut a name must not stand for bytes that never reached the disk.
            stream.flush()
            os.fsync(stream.fileno())
        return Checksum(num_bytes, digest.hexdigest())

    def _make_room(self, part: Path, num_bytes: int) -> None:
        """Remove the shards that were longest without use, then claim the space with an empty file of full size."""
        with self._lock("room"):
            held = sorted(self._held(besides=part))
            total = sum(size for _, size, _ in held)
            for _, size, file in held:
                if total + num_bytes <= self.max_bytes:
                    break
                # A reader keeps its open file though the name goes. Partial files are other processes' claims.
                if file.suffix == ".tar":
                    file.unlink(missing_ok=True)
                    total -= size
            with part.open("wb") as stream:
                os.truncate(stream.fileno(), num_bytes)

    def _held(self, besides: Path) -> Iterator[tuple[int, int, Path]]:
        """Yield time of last use, bytes and place of each file; others may remove some meanwhile."""
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if file != besides:
                    stat = file.stat()
                    yield stat.st_mtime_ns, stat.st_size, file

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Hold a lock among all processes and threads of the node; it ends with its holder."""
        with (self.folder / f"{name}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
