"""Snapshots: immutable training sets with an index, labels, statistics and a build manifest."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

from pipeline.errors import CorruptError, MismatchError, NoClipsError, StoreError
from pipeline.keys import positions_of
from pipeline.labels import Labels, parse_labels
from pipeline.shards.checksum import Checksum
from pipeline.shards.format import digest_of, shard_settings
from pipeline.snapshots.manifest import encode_manifest, read_latest, read_manifest
from pipeline.store.layout import LATEST, SnapshotFiles
from pipeline.store.storage import Store, json_bytes
from pipeline.store.tables import parquet_bytes, read_parquet

SELECTION_KEY = b"selection"
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.dictionary(pa.int16(), pa.string())),
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("num_frames", pa.int32()),
        ("audio_offset", pa.int64()),
        ("audio_length", pa.int64()),
        ("labels", pa.list_(pa.int16())),
    ]
)
"""Columns of the index. It does not store sampling weights, because they depend on the splits to train on."""


@dataclass(frozen=True)
class Snapshot:
    """An immutable table of clips with their classes, sorted by split and key."""

    store: Store
    snapshot_id: str
    index: pa.Table
    labels: Labels
    stats: Mapping[str, Any]
    manifest: Mapping[str, Any]
    checksums: Mapping[str, Checksum]
    """The checksum of each shard, by file name."""

    @property
    def whole_id(self) -> str:
        """For a selection, the id of the whole snapshot that it was taken from. Otherwise, the snapshot's own id."""
        return self.snapshot_id.partition("-")[0]

    @property
    def mean(self) -> float:
        """Mean of the fbanks of the training splits, in units of the natural logarithm."""
        return self.stats["fbank_mean"]

    @property
    def std(self) -> float:
        return self.stats["fbank_std"]

    @cached_property
    def splits(self) -> np.ndarray:
        """The split of each clip (N,)."""
        column = self.index["split"].combine_chunks()
        return np.asarray(column.dictionary.to_pylist())[column.indices.to_numpy()]

    def rows_of(self, splits: tuple[str, ...]) -> np.ndarray:
        """Return the rows of all clips in the given splits, in ascending order. Raises NoClipsError if there are
        none."""
        rows = np.flatnonzero(np.isin(self.splits, splits))
        if not len(rows):
            known = ", ".join(sorted(set(self.splits)))
            raise NoClipsError(
                f"snapshot {self.snapshot_id} in {self.store.root} has no clips in {', '.join(splits)}; its splits are"
                f" {known}"
            )
        return rows

    def targets(self, rows: np.ndarray) -> sparse.csr_array:
        """Return the uint8 multi-hot targets (len(rows), C) of the given rows."""
        labels = self.index["labels"].combine_chunks().take(pa.array(rows))
        return multi_hot(labels, len(self.labels))

    def class_counts(self, splits: tuple[str, ...]) -> np.ndarray:
        """Return the number of clips of each class (C,) in the given splits."""
        counts = self.stats["class_counts"]
        return sum((np.asarray(counts[split]) for split in splits if split in counts), np.zeros(len(self.labels), int))


def multi_hot(labels: pa.ListArray, num_classes: int) -> sparse.csr_array:
    """Convert each clip's class indices to uint8 targets (N, C)."""
    columns = labels.flatten().to_numpy().astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(labels.value_lengths().to_numpy())])
    return sparse.csr_array((np.ones(len(columns), np.uint8), columns, ends), shape=(len(labels), num_classes))


def publish_snapshot(unnamed: Snapshot, made_of: str, check_lease: Callable[[], None] = lambda: None) -> Snapshot:
    """Name a snapshot after its content, write its files, and make it the latest in `latest.json`.

    The manifest is written last. check_lease: called before each write. It raises LeaseError if another run has taken
    over the store.
    """
    shards = [{"shard": name, **dataclasses.asdict(checksum)} for name, checksum in unnamed.checksums.items()]
    index, labels = parquet_bytes(unnamed.index), unnamed.labels.to_csv().encode()
    shard_table = parquet_bytes(pa.Table.from_pylist(shards))
    snapshot = dataclasses.replace(unnamed, snapshot_id=_id_of(index, labels, shard_table, unnamed.stats))
    store, files = snapshot.store, SnapshotFiles(snapshot.snapshot_id)
    try:
        load_snapshot(store, snapshot.snapshot_id)  # an intact snapshot with this id is not written again
    except (NoClipsError, StoreError):
        contents = {
            files.index: index,
            files.labels: labels,
            files.shards: shard_table,
            files.stats: json_bytes(snapshot.stats),
            files.manifest: encode_manifest(snapshot.manifest),
        }
        for name, data in contents.items():
            check_lease()
            store.write_bytes(name, data)
    latest = json_bytes({"snapshot": snapshot.snapshot_id, "made_of": made_of})
    if not store.exists(LATEST) or store.read_bytes(LATEST) != latest:
        store.write_checked(LATEST, latest, check_lease)
    return snapshot


def _id_of(index: bytes, labels: bytes, shards: bytes, stats: Mapping[str, Any]) -> str:
    contents = {"index.parquet": index, "labels.csv": labels, "shards.parquet": shards}
    return digest_of({name: hashlib.sha256(data).hexdigest() for name, data in contents.items()} | {"stats": stats})


def publish_selection(snapshot: Snapshot, rows: np.ndarray, made_by: Mapping[str, Any]) -> Snapshot:
    """Publish a selection of a snapshot's clips. `load_snapshot` accepts its id, `{snapshot}-{digest}`.

    A selection from another selection refers to the whole snapshot. It also keeps the mean and standard deviation of
    the whole snapshot, so that models see the same features with and without the selection.

    rows: rows of the selected clips, in ascending order.
    made_by: the criteria of the selection, as a JSON value.
    """
    whole = snapshot
    if snapshot.snapshot_id != snapshot.whole_id:
        whole = load_snapshot(snapshot.store, snapshot.whole_id)
        rows = positions_of(snapshot.index["key"].take(pa.array(rows)), whole.index["key"])
        made_by = {**made_by, "among": snapshot.snapshot_id}
    rows = np.asarray(rows, np.int32)
    digest = _digest_of_selection(rows, made_by)
    table = pa.table({"row": rows}).replace_schema_metadata({SELECTION_KEY: json.dumps(made_by)})
    whole.store.write_bytes(SnapshotFiles(whole.whole_id).selection(digest), parquet_bytes(table))
    return _select(whole, digest, rows, made_by)


def _load_selection(whole: Snapshot, digest: str) -> Snapshot:
    store, name = whole.store, SnapshotFiles(whole.snapshot_id).selection(digest)
    if not store.exists(name):
        raise NoClipsError(
            f"expected the selection {digest} of snapshot {whole.snapshot_id} in {store.root}, found none; pass"
            " --data.exclude again"
        )
    table = read_parquet(store.read_bytes(name))
    rows = table["row"].to_numpy()
    made_by = json.loads((table.schema.metadata or {}).get(SELECTION_KEY, b"{}"))
    if (found := _digest_of_selection(rows, made_by)) != digest:
        raise CorruptError(
            f"{store.url(name)}: expected content with the digest in its name, found digest {found}. Was it edited?"
        )
    return _select(whole, digest, rows, made_by)


def _select(whole: Snapshot, digest: str, rows: np.ndarray, made_by: Mapping[str, Any]) -> Snapshot:
    index = whole.index.take(pa.array(rows)).combine_chunks()
    selected = dataclasses.replace(
        whole,
        snapshot_id=f"{whole.whole_id}-{digest}",
        index=index,
        manifest={**whole.manifest, "selection": dict(made_by)},
    )
    rows_of = {split: np.flatnonzero(selected.splits == split) for split in whole.stats["num_clips"]}
    changed = {
        "num_clips": {split: len(rows) for split, rows in rows_of.items()},
        "class_counts": {
            split: np.asarray(selected.targets(rows).sum(axis=0)).ravel().astype(int).tolist()
            for split, rows in rows_of.items()
        },
    }
    return dataclasses.replace(selected, stats={**whole.stats, **changed})


def _digest_of_selection(rows: np.ndarray, made_by: Mapping[str, Any]) -> str:
    content = np.asarray(rows, "<i4").tobytes()
    return digest_of({"rows": hashlib.sha256(content).hexdigest(), "made_by": made_by})


def latest_snapshot_id(store: Store) -> str | None:
    return read_latest(store)["snapshot"] if store.exists(LATEST) else None


def load_snapshot(store: Store, snapshot_id: str | None = None) -> Snapshot:
    """Load a snapshot or a selection by its id. Without an id, load the latest snapshot.

    Raises NoClipsError if it does not exist, and CorruptError if its content was changed.
    """
    snapshot_id, _, selection = (snapshot_id or latest_snapshot_id(store) or "").partition("-")
    files = SnapshotFiles(snapshot_id)
    if not snapshot_id or not store.exists(files.manifest):
        raise NoClipsError(
            f"expected the snapshot {snapshot_id or '(latest)'} in {store.root}, found none; preprocess first"
        )
    index_bytes, labels_bytes, shards_bytes = (
        store.read_bytes(name) for name in (files.index, files.labels, files.shards)
    )
    stats = store.read_json(files.stats)
    found = _id_of(index_bytes, labels_bytes, shards_bytes, stats)
    if found != snapshot_id:
        raise CorruptError(
            f"{store.url(files.folder)}: expected content with the digest in its name, found {found}. Was it edited?"
        )
    index = read_parquet(index_bytes)
    labels = parse_labels(labels_bytes.decode(), files.labels)
    shards = read_parquet(shards_bytes).to_pylist()
    checksums = {row["shard"]: Checksum(row["num_bytes"], row["digest"]) for row in shards}
    manifest = read_manifest(store, files.manifest)
    snapshot = Snapshot(store, snapshot_id, index, labels, stats, manifest, checksums)
    return _load_selection(snapshot, selection) if selection else snapshot


def check_fingerprint(snapshot: Snapshot) -> None:
    """Raise MismatchError, which lists the differences, unless the snapshot has this version's shard settings."""
    expected = shard_settings(snapshot.manifest["settings"]["keep_audio"])
    found = snapshot.manifest["settings"]
    differing = sorted(key for key in expected if found.get(key) != expected[key])
    if differing:
        details = "; ".join(f"{key}: expected {expected[key]}, found {found.get(key)}" for key in differing)
        raise MismatchError(f"snapshot {snapshot.snapshot_id} was made with other settings ({details}); convert again")
