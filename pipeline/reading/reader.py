"""Read single clips of a snapshot by shard, offset and length, from the local disk, the node's cache or the store."""

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from pipeline.errors import CorruptError, InputError
from pipeline.reading.prefetch import ShardPrefetcher
from pipeline.shards.format import FRAME_BYTES
from pipeline.snapshots.snapshot import Snapshot

MAX_OPEN_SHARDS = 256
"""Maximum number of tars of a local store that are kept open. Cached tars are opened for each clip instead, because an
evicted tar would occupy space as long as it is open."""
NPY_MAGIC = b"\x93NUMPY"


class ClipReader:
    """Reads members of shards. It is thread-safe.

    Each read includes the member's tar header and checks that the header contains the clip's key. If a shard was
    replaced, reading its first clip therefore reveals this.
    """

    def __init__(self, snapshot: Snapshot, prefetcher: ShardPrefetcher | None = None):
        index = snapshot.index
        self.store = snapshot.store
        self.prefetcher = prefetcher
        self._keys = index["key"].combine_chunks()
        self.shard_names: list[str] = index["shard"].combine_chunks().dictionary.to_pylist()
        self._shard = index["shard"].combine_chunks().indices.to_numpy()
        columns = ("offset", "length", "num_frames", "audio_offset", "audio_length")
        self._offset, self._length, self.num_frames, self._audio_offset, self._audio_length = (
            index[name].to_numpy() for name in columns
        )
        self._open = lru_cache(MAX_OPEN_SHARDS)(_OpenShard)

    def shards_of(self, rows: np.ndarray) -> np.ndarray:
        """For each row, return the index of its shard in `shard_names`."""
        return self._shard[rows]

    def key_of(self, row: int) -> str:
        """Return the key of the clip in a row."""
        return self._keys[row].as_py()

    def read_fbank(self, row: int, out_TM: np.ndarray, start: int = 0) -> int:
        """Read a clip's fbank, starting at frame `start`, into a float16 buffer (T, 128). Returns the number of frames
        read.

        Raises CorruptError if the shard differs from the index.
        """
        num_frames = int(self.num_frames[row])
        num_read = min(num_frames - start, len(out_TM))
        npy_header_bytes = int(self._length[row]) - num_frames * FRAME_BYTES
        # Also read the frames before `start`. A single read then covers both the header, which is checked, and the
        # requested frames.
        head = bytearray(tarfile.BLOCKSIZE + max(npy_header_bytes, 0) + start * FRAME_BYTES)
        self._read(row, int(self._offset[row]), "fbank.npy", head, out_TM[:num_read])
        if head[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + len(NPY_MAGIC)] != NPY_MAGIC:
            raise CorruptError(
                f"{self._where(row)}: expected an .npy of {num_frames} frames, found"
                f" {bytes(head[tarfile.BLOCKSIZE :][:8])!r}; the shard differs from the snapshot's"
            )
        return num_read

    def read_audio(self, row: int) -> np.ndarray:
        """Read a clip's waveform (S,) as int16.

        Raises InputError if the store has no audio, and CorruptError in the same cases as `read_fbank`.
        """
        flac = self.read_flac(row)
        from pipeline.audio.decode import decode_flac  # import PyAV only to read audio

        try:
            return decode_flac(flac)
        except InputError as error:
            raise CorruptError(f"{self._where(row)}: {error}") from error

    def read_flac(self, row: int) -> bytes:
        """Read the bytes of a clip's FLAC. Raises the same errors as `read_audio`."""
        if not self._audio_length[row]:
            raise InputError(
                f"clip {self._keys[row]} has no audio in {self._where(row)}; preprocess with --keep-audio, or train"
                " with --train.features fbank"
            )
        head, flac = bytearray(tarfile.BLOCKSIZE), np.empty(int(self._audio_length[row]), np.uint8)
        self._read(row, int(self._audio_offset[row]), "flac", head, flac)
        return flac.tobytes()

    def _read(self, row: int, offset: int, extension: str, head: bytearray, out: np.ndarray) -> None:
        """Read a member's tar header and the bytes after it into `head` until it is full, and the following bytes into
        `out`."""
        member = f"{self._keys[row]}.{extension}"
        found, num_read = b"", 0
        for read in self._readers_of(self.shard_names[self._shard[row]]):
            num_read = read(offset - tarfile.BLOCKSIZE, head, out)
            found = bytes(head[: tarfile.LENGTH_NAME]).rstrip(b"\0")
            if num_read == len(head) + out.nbytes and found == member.encode():
                return
        what = f"{num_read} bytes of {found!r}" if num_read else "the end of the file"
        raise CorruptError(
            f"{self._where(row)}: expected {member} of {len(head) + out.nbytes} bytes, found {what}; the shard"
            " differs from the snapshot's"
        )

    def _readers_of(self, name: str) -> Iterator[Callable[[int, bytearray, np.ndarray], int]]:
        """Yield functions that read from a shard, in order of preference."""
        if self.store.is_local:
            yield self._open(self.store.path(name)).read_into
            return
        if self.prefetcher and (file := self.prefetcher.find(name)):
            with suppress(CorruptError):  # the shard was evicted in the meantime
                yield _OpenShard(str(file)).read_into
                self.prefetcher.cache.drop(name)
        yield partial(self._read_from_store, name)

    def _read_from_store(self, name: str, offset: int, head: bytearray, out: np.ndarray) -> int:
        content = self.store.read_range(name, offset, len(head) + out.nbytes)
        if len(content) == len(head) + out.nbytes:
            head[:] = content[: len(head)]
            out.view(np.uint8).reshape(-1)[:] = np.frombuffer(content, np.uint8, offset=len(head))
        return len(content)

    def _where(self, row: int) -> str:
        return f"{self.store.url(self.shard_names[self._shard[row]])} at byte {self._offset[row]}"


class _OpenShard:
    """An open tar. It is closed when its last reader has finished."""

    def __init__(self, path: str):
        try:
            self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115
        except FileNotFoundError as error:
            raise CorruptError(
                f"expected the shard {path} of the snapshot, found none; restore it or preprocess again"
            ) from error

    def read_into(self, offset: int, head: bytearray, out: np.ndarray) -> int:
        return os.preadv(self._file.fileno(), [head, out.data], offset)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
