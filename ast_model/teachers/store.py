"""Store teachers with a float16 row of probabilities per scored clip.

teachers/{name}/keys.parquet    keys of the clips, in the order of the rows
teachers/{name}/scores.npy      (N, C) float16
teachers/{name}/teacher.json    classes, grade and sources; written last
"""

import os
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ast_model.config import CacheConfig
from pipeline.errors import ConfigError, CorruptError, MismatchError
from pipeline.keys import positions_of
from pipeline.labels import Labels
from pipeline.reading.cache import ShardCache
from pipeline.shards.checksum import Checksum, checksum_of
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import TEACHER_RECORD, TEACHERS, TeacherFiles
from pipeline.store.storage import Store
from pipeline.store.tables import parquet_bytes, read_parquet


class ScoreRows:
    """Random access to rows of a local file of scores (N, C).

    The file is not memory-mapped, because training reads all 2 GB and mapped pages would count towards each rank's
    memory.
    """

    def __init__(self, file: Path):
        with file.open("rb") as stream:
            np.lib.format.read_magic(stream)
            (self.num_rows, self.num_classes), _, _ = np.lib.format.read_array_header_1_0(stream)
            self._start, self._row_bytes = stream.tell(), 2 * self.num_classes
            # An open descriptor stays valid if the cache evicts the file, and preadv lets threads share it.
            self._descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        if file.stat().st_size != self._start + self.num_rows * self._row_bytes:
            raise CorruptError(f"{file} is truncated: expected {self.num_rows} rows; import the teacher again")

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Read the given rows (n, C) as float16."""
        scores = np.empty((len(rows), self.num_classes), "<f2")
        for scores_C, row in zip(scores, rows.tolist(), strict=True):
            os.preadv(self._descriptor, [scores_C.data], self._start + row * self._row_bytes)
        return scores


def write_rows(file: Path, blocks: Iterable[np.ndarray], rows: np.ndarray, num_classes: int) -> np.ndarray:
    """Write one row of probabilities per clip, averaged over its rows. Returns the clip of each written row.

    blocks: probabilities (n, C) in the order of the score file.
    rows: row of the snapshot's index for each row of scores; -1 to skip it.
    """
    # factorize numbers clips in order of appearance, so the new clips of a block follow all clips written before.
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
    """The record of an imported teacher, stored as `teacher.json`."""

    name: str
    mids: tuple[str, ...]
    """AudioSet ids of the classes, in the order of the snapshot."""
    num_clips: int
    num_bytes: int
    """Size of `scores.npy`."""
    digest: str
    """SHA-256 of `scores.npy`."""
    snapshot: str
    """Id of the snapshot with which the clip ids were matched."""
    found: str
    """Content of the imported files: `logits` or `probabilities`."""
    mAP: float
    """mAP on labelled clips of the snapshot."""
    num_graded: int
    """Number of graded clips."""
    stated_mAP: float | None
    """The publisher's mAP, if given."""
    sources: tuple[str, ...]
    """Imported files."""

    @property
    def files(self) -> TeacherFiles:
        return TeacherFiles(self.name)


def check_name(store: Store, name: str) -> None:
    """Raise ConfigError for a malformed name or the name of an existing teacher."""
    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"expected a --name without a slash, found {name!r}")
    files = TeacherFiles(name)
    if store.exists(files.record):
        raise ConfigError(f"expected a new --name, found a teacher {store.url(files.folder)}; remove it first")


def publish_teacher(store: Store, file: Path, keys: pa.ChunkedArray, facts: dict[str, Any]) -> Teacher:
    """Move a complete file of scores to the store, then write the keys and the record."""
    checksum = checksum_of(file)
    teacher = Teacher(**facts, num_clips=len(keys), num_bytes=checksum.num_bytes, digest=checksum.digest)
    store.publish(file, teacher.files.scores)
    store.write_bytes(teacher.files.keys, parquet_bytes(pa.table({"key": keys})))
    store.write_json(teacher.files.record, asdict(teacher))
    return teacher


def list_teachers(store: Store) -> list[Teacher]:
    """Load the records of all teachers in a store."""
    return [_parse(store, name) for name in store.list(TEACHERS, f"/{TEACHER_RECORD}")]


def load_teacher(store: Store, name: str, labels: Labels) -> Teacher:
    """Load a teacher's record. Raises ConfigError if it does not exist, MismatchError if its classes differ."""
    name = name.removeprefix(f"{TEACHERS}/")
    if not store.exists(TeacherFiles(name).record):
        known = ", ".join(teacher.name for teacher in list_teachers(store)) or "none"
        raise ConfigError(
            f"--train.teachers names {name!r}, which is not in {store.root}; available: {known}. Import"
            " published scores with jobs/teachers.py import"
        )
    teacher = _parse(store, TeacherFiles(name).record)
    if teacher.mids != labels.mids:
        raise MismatchError(
            f"expected the snapshot's {len(labels)} classes in {store.url(teacher.files.folder)}, in the same order,"
            f" found {len(teacher.mids)} classes that differ in name or order; import the teacher again"
        )
    return teacher


def _parse(store: Store, name: str) -> Teacher:
    record = store.read_json(name)
    return Teacher(**{**record, "mids": tuple(record["mids"]), "sources": tuple(record["sources"])})


class Teachers:
    """Mean probabilities of several teachers for some clips of a snapshot."""

    def __init__(self, snapshot: Snapshot, rows: np.ndarray, names: Iterable[str]):
        store, keys = snapshot.store, snapshot.index["key"].take(pa.array(rows))
        self.members = [load_teacher(store, name, snapshot.labels) for name in names]
        self._store, self._num_classes = store, len(snapshot.labels)
        self._row_of_clip = []
        for teacher in self.members:
            theirs = read_parquet(store.read_bytes(teacher.files.keys))["key"]
            self._row_of_clip.append(positions_of(keys, theirs).astype(np.int32))
        self._files: list[ScoreRows] = []

    @property
    def num_taught(self) -> int:
        """Number of clips that at least one teacher scored."""
        return int(np.any([rows >= 0 for rows in self._row_of_clip], axis=0).sum())

    def open(self, cache: CacheConfig) -> "Teachers":
        """Open the scores. A remote store is read through the node's cache."""
        self._files = [ScoreRows(self._local(teacher, cache)) for teacher in self.members]
        return self

    def _local(self, teacher: Teacher, cache: CacheConfig) -> Path:
        name = teacher.files.scores
        if self._store.is_local:
            return Path(self._store.path(name))
        if not cache.folder:
            raise ConfigError("teachers of a remote store are read through the cache: set --train.cache.folder")
        checksum = Checksum(teacher.num_bytes, teacher.digest)
        node = ShardCache(Path(cache.folder).expanduser(), int(cache.max_gb * 1e9), self._store, {name: checksum})
        node.check()
        return node.fetch(name)

    def read(self, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean probabilities (n, C) float32 over each clip's teachers, and a mask (n,) of unscored clips.

        clips: positions among the clips that the constructor received.
        """
        total = np.zeros((len(clips), self._num_classes), np.float32)
        counts = np.zeros(len(clips), np.float32)
        for file, row_of_clip in zip(self._files, self._row_of_clip, strict=True):
            rows = row_of_clip[clips]
            is_scored = rows >= 0
            total[is_scored] += file.read(rows[is_scored])
            counts += is_scored
        return total / np.maximum(counts, 1)[:, None], counts == 0
