"""Build a snapshot: what the metadata say now, joined with the clips that are there."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported.

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from pipeline.errors import InputError, NoClipsError
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.labels import Labels
from pipeline.metadata import Metadata
from pipeline.segments import HELD_OUT_SPLITS
from pipeline.shards.format import WRITTEN, digest_of, shard_settings
from pipeline.shards.ledger import SIDECAR_COLUMNS, match_segments, read_checksums, read_sidecar_table
from pipeline.snapshots.snapshot import (
    INDEX_SCHEMA,
    LATEST,
    Snapshot,
    multi_hot,
    publish_snapshot,
)
from pipeline.store.storage import Store

CLIP_COLUMNS = [
    "num_frames",
    "fbank_offset",
    "fbank_bytes",
    "audio_offset",
    "audio_bytes",
    "fbank_sum",
    "fbank_sum_squares",
]


def build_snapshot(store: Store, metadata: Metadata, keep_audio: bool) -> Snapshot:
    """Build the snapshot of the metadata's segments that were written, and publish it as the latest.

    Labels and splits are the metadata's, whatever they were when a clip was fetched. A clip whose segment is gone, or
    has another end, is left out. Raises NoClipsError if there is no clip at all.
    """
    settings = shard_settings(keep_audio)
    made_of = _made_of(store, metadata, settings)
    sidecar_table = read_sidecar_table(store, digest_of(settings), [*SIDECAR_COLUMNS, *CLIP_COLUMNS])
    rows = match_segments(metadata.segments, sidecar_table)
    attempted = rows >= 0
    segments, results = metadata.segments.filter(pa.array(attempted)), sidecar_table.take(pa.array(rows[attempted]))
    counts = split_counts(segments, results)
    written = pc.equal(results["status"].cast(pa.string()), WRITTEN)
    segments, results = segments.filter(written), results.filter(written)
    if not len(segments):
        raise NoClipsError(
            f"expected clips in {store.root}, found none: {_describe_failures(counts)}. Look at --media and at"
            " the failures above; nothing was trained"
        )
    split = segments["split"].cast(pa.string())
    order = pc.sort_indices(
        pa.table({"split": split, "key": segments["key"]}), [("split", "ascending"), ("key", "ascending")]
    )
    segments, results = segments.take(order).combine_chunks(), results.take(order).combine_chunks()
    label_lists = _label_indices(segments["labels"].combine_chunks(), metadata.labels)
    index = _index_table(segments, results, label_lists)
    checksums = read_checksums(store, sorted(index["shard"].combine_chunks().dictionary.to_pylist()))
    manifest = {"fingerprint": digest_of(settings), "settings": settings, "split_counts": counts}
    stats = _statistics(index, results, multi_hot(label_lists, len(metadata.labels)))
    return publish_snapshot(Snapshot(store, "", index, metadata.labels, stats, manifest, checksums), made_of)


def _made_of(store: Store, metadata: Metadata, settings: Mapping[str, Any]) -> str:
    """Return a digest of what a snapshot would be built from now."""
    return digest_of([store.list("shards", ".parquet"), metadata.digest, settings])


def is_current(snapshot: Snapshot, metadata: Metadata, keep_audio: bool) -> bool:
    """Whether building the latest snapshot again would change nothing."""
    store = snapshot.store
    if store.read_json(LATEST).get("made_of") != _made_of(store, metadata, shard_settings(keep_audio)):
        return False
    # A shard that was removed and made again keeps its name; its bytes may differ.
    return read_checksums(store, list(snapshot.checksums)) == snapshot.checksums


def _describe_failures(counts: Mapping[str, Mapping[str, Any]]) -> str:
    failures = sum((Counter(split["failed"]) for split in counts.values()), Counter())
    if not failures:
        return "no segment was attempted"
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.most_common())
    return f"{failures.total()} segments failed ({reasons})"


def _label_indices(column: pa.DictionaryArray, labels: Labels) -> pa.ListArray:
    """Return the class indices of each clip. A set of labels is looked up once, however many clips have it."""
    codes = column.indices.to_numpy()
    sets = column.dictionary.to_pylist()
    mids_of = {int(code): sets[code].split(",") for code in np.unique(codes)}
    if unknown := sorted({mid for mids in mids_of.values() for mid in mids} - labels.index_of.keys()):
        raise InputError(
            f"{len(unknown)} labels of the clips are not among the {len(labels)} classes: {', '.join(unknown[:10])};"
            " the class_labels_indices.csv does not belong to these segments"
        )
    indices = [[labels.index_of[mid] for mid in mids_of.get(code, ())] for code in range(len(sets))]
    return pa.array(indices, pa.list_(pa.int16())).take(column.indices)


def _index_table(segments: pa.Table, results: pa.Table, label_lists: pa.ListArray) -> pa.Table:
    # Encoded again: a dictionary in the order of the clips is the same whatever else the store holds.
    shard = pc.binary_join_element_wise(results["shard"].cast(pa.string()), "tar", ".")
    columns = {
        "key": segments["key"],
        "split": segments["split"].cast(pa.string()).combine_chunks().dictionary_encode(),
        "shard": shard.combine_chunks().dictionary_encode(),
        "offset": results["fbank_offset"],
        "length": results["fbank_bytes"],
        "num_frames": results["num_frames"],
        "audio_offset": results["audio_offset"],
        "audio_length": results["audio_bytes"],
        "labels": label_lists,
    }
    return pa.table(columns).cast(INDEX_SCHEMA)


def _statistics(index: pa.Table, results: pa.Table, targets: sparse.csr_array) -> dict[str, Any]:
    """Mean and standard deviation over all frames and bins of the training clips, and counts."""
    split = np.asarray(index["split"].cast(pa.string()).to_pylist())
    measured = ~np.isin(split, HELD_OUT_SPLITS)
    if not measured.any():
        measured[:] = True
    count = int(results["num_frames"].to_numpy()[measured].sum()) * NUM_MEL_BINS
    mean = results["fbank_sum"].to_numpy()[measured].sum() / count
    variance = max(0.0, results["fbank_sum_squares"].to_numpy()[measured].sum() / count - mean**2)
    names = [str(name) for name in np.unique(split)]
    counts = {name: np.asarray(targets[split == name].sum(axis=0)).ravel().astype(int).tolist() for name in names}
    return {
        "fbank_mean": float(mean),
        "fbank_std": math.sqrt(variance),
        "num_clips": {name: int((split == name).sum()) for name in names},
        "class_counts": counts,
    }


def split_counts(segments: pa.Table, results: pa.Table) -> dict[str, dict[str, Any]]:
    """Per split: how many segments were planned and written, and how many failed by reason."""
    table = pd.DataFrame(
        {
            "split": segments["split"].cast(pa.string()).to_pandas().astype("category"),
            "status": results["status"].cast(pa.string()).to_pandas().astype("category"),
            "reason": results["reason"].cast(pa.string()).to_pandas().astype("category"),
        }
    )
    counts: dict[str, dict[str, Any]] = {}
    groups = table.groupby(["split", "status", "reason"], observed=True, as_index=False).size()
    for split, status, reason, count in groups.itertuples(index=False):
        of_split = counts.setdefault(split, {"planned": 0, "written": 0, "failed": {}})
        of_split["planned"] += count
        if status == WRITTEN:
            of_split["written"] += count
        else:
            of_split["failed"][reason] = count
    return counts
