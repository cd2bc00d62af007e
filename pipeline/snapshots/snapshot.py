"""A snapshot: what there is to train on, frozen. Index, labels, statistics and a manifest of how it came about."""

import dataclasses
import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from pipeline.errors import CorruptError, InputError, MismatchError, NoClipsError
from pipeline.fbank import NUM_MEL_BINS
from pipeline.labels import Labels, parse_labels
from pipeline.shards.format import FAILED, WRITTEN, Checksum, digest_of, shard_settings
from pipeline.shards.ledger import read_checksums, read_ledger
from pipeline.store.storage import Store
from pipeline.weights import class_balanced_weights

LATEST = "latest.json"
HELD_OUT_SPLITS = ("eval", "valid", "test")
"""Splits that nothing is learnt from: no weights, no part in the statistics."""
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
        ("weight", pa.float64()),
    ]
)


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
        return _targets(labels, len(self.labels))

    def class_counts(self, splits: tuple[str, ...]) -> np.ndarray:
        """Clips per class (C,) in some splits."""
        counts = self.stats["class_counts"]
        return sum((np.asarray(counts[split]) for split in splits if split in counts), np.zeros(len(self.labels), int))


def _targets(labels: pa.ListArray, num_classes: int) -> sparse.csr_array:
    columns = labels.flatten().to_numpy().astype(np.int32)
    ends = np.concatenate([[0], np.cumsum(labels.value_lengths().to_numpy())])
    return sparse.csr_array((np.ones(len(columns), np.uint8), columns, ends), shape=(len(labels), num_classes))


def build_snapshot(store: Store, labels: Labels, keep_audio: bool) -> Snapshot:
    """Build the snapshot of all that the sidecars hold and publish it as the latest; do nothing if it is already.

    Raises NoClipsError if no clip was written at all.
    """
    settings = shard_settings(keep_audio)
    made_of = _made_of(store, labels, settings)
    sidecar_table = read_ledger(store, digest_of(settings))
    clips = sidecar_table[sidecar_table["status"] == WRITTEN].sort_values(["split", "key"], ignore_index=True)
    if clips.empty:
        raise NoClipsError(
            f"expected clips in {store.root}, found none: {_describe_failures(sidecar_table)}. Look at --media and at"
            " the failures above; nothing was trained"
        )
    is_train = ~clips["split"].isin(HELD_OUT_SPLITS).to_numpy()
    targets, label_lists = _label_indices(clips["labels"], labels)
    weights = np.zeros(len(clips))
    if is_train.any():
        weights[is_train] = class_balanced_weights(targets[is_train])
    index = _index_table(clips, label_lists, weights)
    stats = _statistics(clips, targets, is_train)
    manifest = {"fingerprint": digest_of(settings), "settings": settings, "split_counts": split_counts(sidecar_table)}
    unnamed = Snapshot(store, "", index, labels, stats, manifest, _read_checksums(store, index))
    return publish_snapshot(unnamed, made_of)


def _made_of(store: Store, labels: Labels, settings: Mapping[str, Any]) -> str:
    """Return a digest of what a snapshot would be built from now; sidecars never change under their names."""
    return digest_of([store.list("shards", ".parquet"), labels.to_csv(), settings])


def load_current(store: Store, labels: Labels, keep_audio: bool) -> Snapshot | None:
    """Load the latest snapshot if building it anew would change nothing; else None."""
    if not store.exists(LATEST):
        return None
    if store.read_json(LATEST).get("made_of") != _made_of(store, labels, shard_settings(keep_audio)):
        return None
    return load_snapshot(store)


def _read_checksums(store: Store, index: pa.Table) -> dict[str, Checksum]:
    names = sorted(index["shard"].combine_chunks().dictionary.to_pylist())
    return dict(zip(names, read_checksums(store, [name.removesuffix(".tar") for name in names]), strict=True))


def _checksum_table(checksums: Mapping[str, Checksum]) -> pa.Table:
    rows = [
        {"shard": name, "num_bytes": checksum.num_bytes, "digest": checksum.digest}
        for name, checksum in checksums.items()
    ]
    return pa.Table.from_pylist(rows)


def _describe_failures(sidecar_table: pd.DataFrame) -> str:
    if sidecar_table.empty:
        return "no segment was visited"
    reasons = sidecar_table.loc[sidecar_table["status"] == FAILED, "reason"].value_counts()
    return f"{len(sidecar_table)} segments failed (" + ", ".join(f"{n} {reason}" for reason, n in reasons.items()) + ")"


def _label_indices(labels_of_clips: pd.Series, labels: Labels) -> tuple[sparse.csr_array, pa.ListArray]:
    lists = pa.array(labels_of_clips, pa.list_(pa.string()))
    flat = lists.flatten()
    indices = pd.Series(flat.to_pandas()).map(labels.index_of)
    if indices.isna().any():
        unknown = sorted(set(flat.to_pandas()[indices.isna()]))
        raise InputError(
            f"{len(unknown)} labels of the clips are not among the {len(labels)} classes: {', '.join(unknown[:10])};"
            " the class_labels_indices.csv does not belong to these segments"
        )
    values = pa.array(indices.astype(np.int16).to_numpy(), pa.int16())
    offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]).astype(np.int32)
    label_lists = pa.ListArray.from_arrays(pa.array(offsets), values)
    return _targets(label_lists, len(labels)), label_lists


def _index_table(clips: pd.DataFrame, labels: pa.ListArray, weights: np.ndarray) -> pa.Table:
    columns = {
        "key": pa.array(clips["key"]),
        "split": pa.array(clips["split"]).cast(pa.string()).dictionary_encode(),
        "shard": pa.array(clips["shard"] + ".tar").cast(pa.string()).dictionary_encode(),
        "offset": clips["fbank_offset"].to_numpy(),
        "length": clips["fbank_bytes"].to_numpy(),
        "num_frames": clips["num_frames"].to_numpy(),
        "audio_offset": clips["audio_offset"].to_numpy(),
        "audio_length": clips["audio_bytes"].to_numpy(),
        "labels": labels,
        "weight": weights,
    }
    return pa.table(columns).cast(INDEX_SCHEMA)


def _statistics(clips: pd.DataFrame, targets: sparse.csr_array, is_train: np.ndarray) -> dict[str, Any]:
    """Mean and standard deviation over all frames and bins of the training clips, and counts."""
    measured = clips[is_train] if is_train.any() else clips
    count = int(measured["num_frames"].sum()) * NUM_MEL_BINS
    mean = measured["fbank_sum"].sum() / count
    variance = max(0.0, measured["fbank_sum_squares"].sum() / count - mean**2)
    split = clips["split"].to_numpy()
    names = [str(name) for name in np.unique(split)]
    counts = {name: np.asarray(targets[split == name].sum(axis=0)).ravel().astype(int).tolist() for name in names}
    return {
        "fbank_mean": float(mean),
        "fbank_std": math.sqrt(variance),
        "num_clips": {name: int((split == name).sum()) for name in names},
        "class_counts": counts,
    }


def split_counts(sidecar_table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Per split: how many segments were planned and written, and how many failed by reason."""
    balance = {}
    for split, rows in sidecar_table.groupby("split"):
        failures = rows.loc[rows["status"] == FAILED, "reason"].value_counts().sort_index()
        balance[str(split)] = {
            "planned": len(rows),
            "written": int((rows["status"] == WRITTEN).sum()),
            "failed": {str(reason): int(count) for reason, count in failures.items()},
        }
    return balance


def _parquet_bytes(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def publish_snapshot(unnamed: Snapshot, made_of: str) -> Snapshot:
    """Name a snapshot by what is in it, write its files, the manifest last, and point `latest.json` to it."""
    parts = {
        "index.parquet": _parquet_bytes(unnamed.index),
        "labels.csv": unnamed.labels.to_csv().encode(),
        "shards.parquet": _parquet_bytes(_checksum_table(unnamed.checksums)),
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
        raise MismatchError(f"snapshot {snapshot.snapshot_id} was made with other settings ({details}); convert anew")
