"""Build a snapshot by joining the current metadata with the written clips."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from pipeline.errors import InputError, NoClipsError
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.labels import NO_LABEL, Labels
from pipeline.metadata import Metadata
from pipeline.segments import HELD_OUT_SPLITS
from pipeline.shards.format import WRITTEN, digest_of, shard_settings
from pipeline.shards.ledger import SIDECAR_COLUMNS, match_segments, read_checksums, read_sidecar_table
from pipeline.snapshots.manifest import read_latest
from pipeline.snapshots.snapshot import (
    INDEX_SCHEMA,
    Snapshot,
    multi_hot,
    publish_snapshot,
)
from pipeline.store.layout import SHARDS, SIDECAR
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


def build_snapshot(
    store: Store, metadata: Metadata, keep_audio: bool, check_lease: Callable[[], None] = lambda: None
) -> Snapshot:
    """Build a snapshot of the written clips in the metadata, and publish it as the latest snapshot.

    Labels and splits come from the metadata, even if they changed after the conversion. A clip is excluded if the
    metadata have no segment with the same key and end. Raises NoClipsError if no clips are left.

    check_lease: called before each write. It raises LeaseError if another run has taken over the store.
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
            f"expected clips in {store.root}, found none: {_describe_failures(counts)}. Check --media and the"
            " failures above"
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
    snapshot = Snapshot(store, "", index, metadata.labels, stats, manifest, checksums)
    return publish_snapshot(snapshot, made_of, check_lease)


def _made_of(store: Store, metadata: Metadata, settings: Mapping[str, Any]) -> str:
    """Return a digest of everything that a snapshot is built from."""
    return digest_of([store.list(SHARDS, SIDECAR), metadata.digest, settings])


def is_current(snapshot: Snapshot, metadata: Metadata, keep_audio: bool) -> bool:
    """Return True if rebuilding the latest snapshot would change nothing."""
    store = snapshot.store
    if read_latest(store).get("made_of") != _made_of(store, metadata, shard_settings(keep_audio)):
        return False
    # Also compare the checksums: a rebuilt shard keeps its name, but its bytes may differ.
    return read_checksums(store, list(snapshot.checksums)) == snapshot.checksums


def _describe_failures(counts: Mapping[str, Mapping[str, Any]]) -> str:
    failures = sum((Counter(split["failed"]) for split in counts.values()), Counter())
    if not failures:
        return "no segment was attempted"
    reasons = ", ".join(f"{count} {reason}" for reason, count in failures.most_common())
    return f"{failures.total()} segments failed ({reasons})"


def _label_indices(column: pa.DictionaryArray, labels: Labels) -> pa.ListArray:
    """Return the class indices of each clip. Each distinct set of labels is converted only once."""
    codes = column.indices.to_numpy()
    sets = column.dictionary.to_pylist()
    mids_of = {int(code): [mid for mid in sets[code].split(",") if mid != NO_LABEL] for code in np.unique(codes)}
    if unknown := sorted({mid for mids in mids_of.values() for mid in mids} - labels.index_of.keys()):
        raise InputError(
            f"{len(unknown)} labels of the clips are not among the {len(labels)} classes: {', '.join(unknown[:10])};"
            " use the class_labels_indices.csv of these segments"
        )
    indices = [[labels.index_of[mid] for mid in mids_of.get(code, ())] for code in range(len(sets))]
    return pa.array(indices, pa.list_(pa.int16())).take(column.indices)


def _index_table(segments: pa.Table, results: pa.Table, label_lists: pa.ListArray) -> pa.Table:
    # Encode the columns again, so that the dictionaries depend only on these clips and not on other shards in the
    # store.
    columns = {
        "key": segments["key"],
        "split": segments["split"].cast(pa.string()).combine_chunks().dictionary_encode(),
        "shard": results["shard"].cast(pa.string()).combine_chunks().dictionary_encode(),
        "offset": results["fbank_offset"],
        "length": results["fbank_bytes"],
        "num_frames": results["num_frames"],
        "audio_offset": results["audio_offset"],
        "audio_length": results["audio_bytes"],
        "labels": label_lists,
    }
    return pa.table(columns).cast(INDEX_SCHEMA)


def _statistics(index: pa.Table, results: pa.Table, targets: sparse.csr_array) -> dict[str, Any]:
    """Return the numbers of clips, and the mean and standard deviation over all frames and bins of the training
    clips."""
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
    """Count the planned and the written segments of each split, and the failed segments by reason."""
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
