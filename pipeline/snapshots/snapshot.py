"""A snapshot: what there is to train on, frozen. Index, labels, statistics and a manifest of how it came about."""

import dataclasses
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from pipeline.errors import CorruptError, MismatchError, NoClipsError
from pipeline.labels import Labels, parse_labels
from pipeline.shards.checksum import Checksum
from pipeline.shards.format import digest_of, shard_settings
from pipeline.store.storage import Store

LATEST = "latest.json"
PARTS = ("index.parquet", "labels.csv", "shards.parquet")
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
"""Sampling weights are no column: they follow from the splits that a training chooses."""


@dataclass(frozen=True)
class Snapshot:
    """An immutable table of clips, with their classes. Clips are sorted by split and key."""

    store: Store
    snapshot_id: str
    index: pa.Table
    labels: Labels
    stats: Mapping[str, Any]
    manifest: Mapping[str, Any]
    checksums: Mapping[str, Checksum]
    """Of each shard, by its name with extension."""

    @property
    def mean(self) -> float:
        """Mean of the training splits' fbanks, in natural-log units."""
        return self.stats["fbank_mean"]

    @property
    def std(self) -> float:
        return self.stats["fbank_std"]

    @cached_property
    def splits(self) -> np.ndarray:
        """Split of each clip (N,)."""
        column = self.index["split"].combine_chunks()
        return np.asarray(column.dictionary.to_pylist())[column.indices.to_numpy()]

    def rows_of(self, splits: tuple[str, ...]) -> np.ndarray:
        """Row numbers of the clips of some splits, ascending."""
        rows = np.flatnonzero(np.isin(self.splits, splits))
        if not len(rows):
            known = ", ".join(sorted(set(self.splits)))
            raise NoClipsError(
                f"snapshot {self.snapshot_id} in {self.store.root} has no clip of {', '.join(splits)}; it has {known}"
            )
        return rows

    def targets(self, rows: np.ndarray) -> sparse.csr_array:
        """Multi-hot targets (len(rows), C) of uint8."""
        labels = self.index["labels"].combine_chunks().take(pa.array(rows))
        return multi_hot(labels, len(self.labels))

    def class_counts(self, splits: tuple[str, ...]) -> np.ndarray:
        """Clips per class (C,) in some splits."""
        counts = self.stats["class_counts"]
        return sum((np.asarray(counts[split]) for split in splits if split in counts), np.zeros(len(self.labels), int))


def multi_hot(labels: pa.ListArray, num_classes: int) -> sparse.csr_array:
    """Class indices per clip → targets (N, C) of uint8."""
    columns = labels.flatten().to_numpy().astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(labels.value_lengths().to_numpy())])
    return sparse.csr_array((np.ones(len(columns), np.uint8), columns, ends), shape=(len(labels), num_classes))


def publish_snapshot(unnamed: Snapshot, made_of: str) -> Snapshot:
    """Name a snapshot by what is in it, write its files, the manifest last, and point `latest.json` to it."""
    shards = [{"shard": name, **dataclasses.asdict(checksum)} for name, checksum in unnamed.checksums.items()]
    parts = {
        "index.parquet": _parquet_bytes(unnamed.index),
        "labels.csv": unnamed.labels.to_csv().encode(),
        "shards.parquet": _parquet_bytes(pa.Table.from_pylist(shards)),
    }
    snapshot = dataclasses.replace(unnamed, snapshot_id=_id_of(parts, unnamed.stats))
    store, folder = snapshot.store, f"snapshots/{snapshot.snapshot_id}"
    if not store.exists(f"{folder}/manifest.json"):
        for name, data in parts.items():
            store.write_bytes(f"{folder}/{name}", data)
        store.write_json(f"{folder}/stats.json", snapshot.stats)
        store.write_json(f"{folder}/manifest.json", snapshot.manifest)
    latest = {"snapshot": snapshot.snapshot_id, "made_of": made_of}
    if not store.exists(LATEST) or store.read_json(LATEST) != latest:
        store.write_json(LATEST, latest)
    return snapshot


def _parquet_bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _id_of(parts: Mapping[str, bytes], stats: Mapping[str, Any]) -> str:
    return digest_of({name: hashlib.sha256(data).hexdigest() for name, data in parts.items()} | {"stats": stats})


def latest_snapshot_id(store: Store) -> str | None:
    return store.read_json(LATEST)["snapshot"] if store.exists(LATEST) else None


def load_snapshot(store: Store, snapshot_id: str | None = None) -> Snapshot:
    """Load a snapshot, the latest unless named.

    Raises NoClipsError if there is none, CorruptError if it was changed.
    """
    snapshot_id = snapshot_id or latest_snapshot_id(store)
    folder = f"snapshots/{snapshot_id}"
    if snapshot_id is None or not store.exists(f"{folder}/manifest.json"):
        raise NoClipsError(
            f"expected the snapshot {snapshot_id or '(latest)'} in {store.root}, found none; preprocess first"
        )
    files = {name: store.read_bytes(f"{folder}/{name}") for name in PARTS}
    stats = store.read_json(f"{folder}/stats.json")
    found = _id_of(files, stats)
    if found != snapshot_id:
        raise CorruptError(f"{store.url(folder)}: expected content with the digest in its name, found {found}: edited?")
    index = pq.read_table(io.BytesIO(files["index.parquet"]))
    labels = parse_labels(files["labels.csv"].decode(), f"{folder}/labels.csv")
    shards = pq.read_table(io.BytesIO(files["shards.parquet"])).to_pylist()
    checksums = {row["shard"]: Checksum(row["num_bytes"], row["digest"]) for row in shards}
    return Snapshot(store, snapshot_id, index, labels, stats, store.read_json(f"{folder}/manifest.json"), checksums)


def check_fingerprint(snapshot: Snapshot) -> None:
    """Raise MismatchError, naming what differs, unless the snapshot was made with this version's fbank."""
    expected = shard_settings(snapshot.manifest["settings"]["keep_audio"])
    found = snapshot.manifest["settings"]
    differing = sorted(key for key in expected if found.get(key) != expected[key])
    if differing:
        details = "; ".join(f"{key}: expected {expected[key]}, found {found.get(key)}" for key in differing)
        raise MismatchError(f"snapshot {snapshot.snapshot_id} was made with other settings ({details}); convert again")
