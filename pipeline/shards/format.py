"""The shard format: a WebDataset tar of clips, and a sidecar with one row per planned segment.

The sidecar is published after the tar, so a shard with a sidecar is complete. Each shard is named after a digest of its
plan. Runs with the same plan therefore write the same files, and different plans never collide.
"""

import dataclasses
import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CorruptError
from pipeline.fbank_settings import FBANK_SETTINGS, NUM_MEL_BINS
from pipeline.records import Segment
from pipeline.shards.checksum import Checksum
from pipeline.store.storage import Store
from pipeline.store.tables import parquet_bytes

FORMAT_VERSION = 1
FBANK_DTYPE = np.dtype("<f2")
FRAME_BYTES = NUM_MEL_BINS * FBANK_DTYPE.itemsize
WRITTEN = "written"
FAILED = "failed"


def digest_of(value: Any) -> str:
    """Return a digest of a JSON value, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def shard_settings(keep_audio: bool) -> dict[str, Any]:
    """Return all settings that affect a shard's bytes."""
    return {"format": FORMAT_VERSION, "fbank": FBANK_SETTINGS, "keep_audio": keep_audio}


def shard_fingerprint(keep_audio: bool) -> str:
    return digest_of(shard_settings(keep_audio))


@dataclass(frozen=True, slots=True)
class SidecarRow:
    """The result of one planned segment, as a row of the sidecar."""

    key: str
    ytid: str
    start_ms: int
    end_ms: int
    split: str
    labels: tuple[str, ...]
    status: str
    """`written` or `failed`."""
    reason: str = ""
    detail: str = ""
    """The original message of a failure. For a written clip, it is empty or a remark such as `short`."""
    attempts: int = 0
    """Number of attempts at this clip in all runs so far."""
    source: str = ""
    num_frames: int = 0
    fbank_offset: int = 0
    """Byte offset in the tar at which the member's content starts."""
    fbank_bytes: int = 0
    json_offset: int = 0
    json_bytes: int = 0
    audio_offset: int = 0
    audio_bytes: int = 0
    digest: str = ""
    """SHA-256 of the fbank member."""
    fbank_sum: float = 0.0
    """Sum over all frames and bins, from which a snapshot computes its mean and standard deviation."""
    fbank_sum_squares: float = 0.0


ARROW_TYPES: dict[Any, pa.DataType] = {
    int: pa.int64(),
    str: pa.string(),
    float: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
}
SIDECAR_METADATA = {b"fingerprint", b"tar_bytes", b"tar_digest"}
SIDECAR_SCHEMA = pa.schema([(field.name, ARROW_TYPES[field.type]) for field in dataclasses.fields(SidecarRow)])


class ShardWriter:
    """Writes a shard's clips to a local tar, and records the offset of each member."""

    def __init__(self, file: Path, tar_writer: Callable[..., Any] | None = None):
        """Create the tar `file`.

        tar_writer: replacement for webdataset's `TarWriter` on machines without this package.
        """
        if tar_writer is None:
            from webdataset.writer import TarWriter  # only conversions need this package

            tar_writer = TarWriter
        self._stream = file.open("wb")
        self._tar = tar_writer(self._stream, mtime=0)

    def write(self, segment: Segment, fbank_TM: np.ndarray, audio: bytes | None, source: str) -> dict[str, Any]:
        """Add a clip with its fbank (T, 128) and, optionally, its FLAC. Returns the sidecar fields that describe the
        content."""
        fbank_TM = np.ascontiguousarray(fbank_TM, dtype=FBANK_DTYPE)
        description = {
            "key": segment.key,
            "ytid": segment.ytid,
            "start_ms": segment.start_ms,
            "end_ms": segment.end_ms,
            "labels": list(segment.labels),
            "source": PurePosixPath(source).name,  # the bytes must not depend on the host
            "num_frames": len(fbank_TM),
        }
        members = {
            "fbank.npy": _npy_bytes(fbank_TM),
            "json": json.dumps(description, sort_keys=True).encode(),
        }
        if audio is not None:
            members["flac"] = audio
        offsets = self._write_members(segment.key, members)
        values = fbank_TM.astype(np.float64)
        return {
            "num_frames": len(fbank_TM),
            "fbank_offset": offsets["fbank.npy"],
            "fbank_bytes": len(members["fbank.npy"]),
            "json_offset": offsets["json"],
            "json_bytes": len(members["json"]),
            "audio_offset": offsets.get("flac", 0),
            "audio_bytes": len(members.get("flac", b"")),
            "digest": hashlib.sha256(members["fbank.npy"]).hexdigest(),
            "fbank_sum": float(values.sum()),
            "fbank_sum_squares": float(np.square(values).sum()),
        }

    def _write_members(self, key: str, members: Mapping[str, bytes]) -> dict[str, int]:
        offsets = {}
        for extension, content in members.items():
            self._tar.write({"__key__": key, extension: content})
            padded = -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            offsets[extension] = self._tar.tarstream.offset - padded
        return offsets

    def close(self) -> None:
        self._tar.close()
        self._stream.close()


def _npy_bytes(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


@contextmanager
def map_tar(tar: Path) -> Iterator[mmap.mmap | bytes]:
    """Memory-map a tar. For an empty file, which mmap rejects, yield `b""`."""
    with tar.open("rb") as stream:
        if not tar.stat().st_size:
            yield b""
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content


def parse_fbank(member: bytes | memoryview, num_frames: int) -> np.ndarray:
    """Return a view of a clip's `.fbank.npy` member as float16 (T, 128), without copying it.

    The view covers the last `num_frames` rows, so the length of the header does not matter. Raises CorruptError if the
    member is too short or has no .npy header.
    """
    expected = num_frames * FRAME_BYTES
    if len(member) < expected or bytes(member[:6]) != b"\x93NUMPY":
        raise CorruptError(
            f"expected an .npy of {num_frames} frames ({expected} bytes and a header), found {len(member)} bytes that"
            f" start with {bytes(member[:6])!r}; the shard differs from the index"
        )
    return np.frombuffer(member, FBANK_DTYPE, offset=len(member) - expected).reshape(num_frames, NUM_MEL_BINS)


def write_sidecar(store: Store, name: str, rows: list[SidecarRow], fingerprint: str, checksum: Checksum) -> None:
    """Publish a shard's sidecar, which marks the shard as finished."""
    columns = {name: [getattr(row, name) for row in rows] for name in SIDECAR_SCHEMA.names}
    table = pa.Table.from_pydict(columns, schema=SIDECAR_SCHEMA)
    metadata = {"fingerprint": fingerprint, "tar_bytes": str(checksum.num_bytes), "tar_digest": checksum.digest}
    store.write_bytes(name, parquet_bytes(table.replace_schema_metadata(metadata)))


def sidecar_checksum(sidecar: pa.Table) -> Checksum:
    """Return the checksum of the tar that belongs to a sidecar from `read_sidecar`."""
    metadata = sidecar.schema.metadata
    return Checksum(int(metadata[b"tar_bytes"]), metadata[b"tar_digest"].decode())


def read_sidecar(store: Store, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a sidecar. The metadata of the table's schema contain the fingerprint and the tar's checksum."""
    try:
        # This is four times as fast as `pq.read_table`, which sets up for many files and threads.
        with pq.ParquetFile(pa.BufferReader(store.read_bytes(name))) as file:
            table = file.read(columns, use_threads=False)
        table.validate(full=True)  # without this, invalid UTF-8 only raises when a row is read
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptError(f"{store.url(name)} is not a valid sidecar: {error}; remove it and run again") from error
    missing = set(columns or SIDECAR_SCHEMA.names) - set(table.column_names)
    missing |= {key.decode() for key in SIDECAR_METADATA - (table.schema.metadata or {}).keys()}
    if missing:
        raise CorruptError(
            f"{store.url(name)} is a sidecar of another version: it lacks {sorted(missing)}; remove it and run again"
        )
    return table
