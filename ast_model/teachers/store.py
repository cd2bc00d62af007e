"""A teacher in the store: a float16 row of probabilities for each clip that it has scored.

teachers/{name}/keys.parquet    the clips, in the rows' order
teachers/{name}/scores.npy      (N, C) float16
teachers/{name}/teacher.json    classes, grade and where it came from; written last
"""

import io
import os
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ast_model.config import CacheConfig
from pipeline.errors import ConfigError, CorruptError, MismatchError
from pipeline.keys import positions_of
from pipeline.labels import Labels
from pipeline.reading.cache import ShardCache
from pipeline.shards.checksum import Checksum, checksum_of
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store
from pipeline.store.tables import parquet_bytes

FOLDER = "teachers"
SCORES, KEYS, RECORD = "scores.npy", "keys.parquet", "teacher.json"


class ScoreRows:
    """A local file of scores (N, C), read by rows.

    Not mapped into memory: a training reads all of its 2 GB, and a map's pages would count as each rank's own.
    """

    def __init__(self, file: Path):
        with file.open("rb") as stream:
            np.lib.format.read_magic(stream)
            (self.num_rows, self.num_classes), _, _ = np.lib.format.read_array_header_1_0(stream)
            self._start, self._row_bytes = stream.tell(), 2 * self.num_classes
            # Kept open under a number of its own: the cache may drop the name, and threads share no position.
            self._number = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._number)
        if file.stat().st_size != self._start + self.num_rows * self._row_bytes:
            raise CorruptError(f"{file} is cut short: expected {self.num_rows} rows; import the teacher again")

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows (n, C), float16."""
        scores = np.empty((len(rows), self.num_classes), "<f2")
        for scores_C, row in zip(scores, rows.tolist(), strict=True):
            os.preadv(self._number, [scores_C.data], self._start + row * self._row_bytes)
        return scores


def write_rows(file: Path, blocks: Iterable[np.ndarray], rows: np.ndarray, num_classes: int) -> np.ndarray:
    """Write probabilities by clip; a clip with several rows gets their mean. Return each written row's clip.

    blocks: (n, C) in their file's order. rows: the clip of each of them, -1 for one to leave out.
    """
    # factorize numbers the clips as they come, so those new in a block follow the ones written before.
    codes = np.full(len(rows), -1)
    codes[rows >= 0], clips = pd.factorize(rows[rows >= 0])
    num_seen = np.zeros(len(clips), np.int32)
    with file.open("w+b") as stream:
        shape = (len(clips), num_classes)
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": shape})
        stream.flush()
        start, row_bytes, at, num_written = stream.tell(), 2 * num_classes, 0, 0
        for block in blocks:
            block_codes = codes[at : at + len(block)]
            at += len(block)
            first = np.unique(block_codes, return_index=True)[1]
            is_new = np.zeros(len(block), bool)
            is_new[first] = block_codes[first] >= num_written
            os.pwrite(stream.fileno(), block[is_new].astype("<f2").tobytes(), start + num_written * row_bytes)
            num_written += int(is_new.sum())
            num_seen[block_codes[is_new]] = 1
            for row in np.flatnonzero(~is_new & (block_codes >= 0)).tolist():
                code = int(block_codes[row])
                offset = start + code * row_bytes
                mean = np.frombuffer(os.pread(stream.fileno(), row_bytes, offset), "<f2").astype(np.float32)
                num_seen[code] += 1
                mean += (block[row] - mean) / num_seen[code]
                os.pwrite(stream.fileno(), mean.astype("<f2").tobytes(), offset)
    return clips


@dataclass(frozen=True)
class Teacher:
    """A teacher's record."""

    name: str
    mids: tuple[str, ...]
    """Of its columns: a snapshot's."""
    num_clips: int
    num_bytes: int
    digest: str
    """SHA-256 of `scores.npy`."""
    snapshot: str
    """That its ids were matched with."""
    found: str
    """Logits or probabilities: what the files held."""
    mAP: float
    num_graded: int
    stated_mAP: float | None
    sources: tuple[str, ...]

    @cached_property
    def folder(self) -> str:
        return f"{FOLDER}/{self.name}"


def check_name(store: Store, name: str) -> None:
    """Raise ConfigError unless a new teacher may have this name."""
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"expected a --name without a slash, found {name!r}")
    if store.exists(f"{FOLDER}/{name}/{RECORD}"):
        raise ConfigError(f"expected a new --name, found a teacher {store.url(f'{FOLDER}/{name}')}; remove it first")


def publish_teacher(store: Store, file: Path, keys: pa.ChunkedArray, facts: dict[str, Any]) -> Teacher:
    """Move a complete file of scores to the store, the record last."""
    checksum = checksum_of(file)
    teacher = Teacher(**facts, num_clips=len(keys), num_bytes=checksum.num_bytes, digest=checksum.digest)
    store.publish(file, f"{teacher.folder}/{SCORES}")
    store.write_bytes(f"{teacher.folder}/{KEYS}", parquet_bytes(pa.table({"key": keys})))
    store.write_json(f"{teacher.folder}/{RECORD}", asdict(teacher))
    return teacher


def list_teachers(store: Store) -> list[Teacher]:
    """Return the teachers of a store."""
    return [_parse(store, name) for name in store.list(FOLDER, f"/{RECORD}")]


def load_teacher(store: Store, name: str, labels: Labels) -> Teacher:
    """Load a teacher's record. Raises ConfigError if there is none, MismatchError if it has other classes."""
    name = name.removeprefix(f"{FOLDER}/")
    if not store.exists(f"{FOLDER}/{name}/{RECORD}"):
        known = ", ".join(teacher.name for teacher in list_teachers(store)) or "none yet"
        raise ConfigError(
            f"expected in --train.teachers a teacher of {store.root}, found {name!r}; it has {known}. jobs/teachers.py"
            " import makes one of scores"
        )
    teacher = _parse(store, f"{FOLDER}/{name}/{RECORD}")
    if teacher.mids != labels.mids:
        raise MismatchError(
            f"expected in {store.url(teacher.folder)} the {len(labels)} classes of the snapshot, in its order, found"
            f" {len(teacher.mids)} that are others or in another; import the teacher again"
        )
    return teacher


def _parse(store: Store, name: str) -> Teacher:
    record = store.read_json(name)
    return Teacher(**{**record, "mids": tuple(record["mids"]), "sources": tuple(record["sources"])})


class Teachers:
    """The mean of some teachers' probabilities, for some clips of a snapshot."""

    def __init__(self, snapshot: Snapshot, rows: np.ndarray, names: Iterable[str]):
        store, keys = snapshot.store, snapshot.index["key"].take(pa.array(rows))
        self.members = [load_teacher(store, name, snapshot.labels) for name in names]
        self._store, self._num_classes = store, len(snapshot.labels)
        self._row_of_clip = []
        for teacher in self.members:
            theirs = pq.read_table(io.BytesIO(store.read_bytes(f"{teacher.folder}/{KEYS}")))["key"]
            self._row_of_clip.append(positions_of(keys, theirs).astype(np.int32))
        self._files: list[ScoreRows] = []

    @property
    def num_taught(self) -> int:
        """Clips that at least one of them has scored."""
        return int(np.any([rows >= 0 for rows in self._row_of_clip], axis=0).sum())

    def open(self, cache: CacheConfig) -> "Teachers":
        """Open the scores, if the store is remote through the node's cache."""
        self._files = [ScoreRows(self._local(teacher, cache)) for teacher in self.members]
        return self

    def _local(self, teacher: Teacher, cache: CacheConfig) -> Path:
        name = f"{teacher.folder}/{SCORES}"
        if self._store.is_local:
            return Path(self._store.path(name))
        if not cache.folder:
            raise ConfigError("teachers of a store that is not local are read from the cache: set --train.cache.folder")
        checksum = Checksum(teacher.num_bytes, teacher.digest)
        node = ShardCache(Path(cache.folder).expanduser(), int(cache.max_gb * 1e9), self._store, {name: checksum})
        node.check()
        return node.fetch(name)

    def read(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean (n, C) float32 of those that have scored each clip, and which (n,) have none."""
        total = np.zeros((len(clips), self._num_classes), np.float32)
        counts = np.zeros(len(clips), np.float32)
        for file, row_of_clip in zip(self._files, self._row_of_clip, strict=True):
            rows = row_of_clip[clips]
            is_scored = rows >= 0
            total[is_scored] += file.read(rows[is_scored])
            counts += is_scored
        return total / np.maximum(counts, 1)[:, None], counts == 0
