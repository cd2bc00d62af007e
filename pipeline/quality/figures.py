"""The figures of a report: planned and lost segments, distributions, classes, flaws and duplicates.

Letters: N clips, C classes.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import.

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.keys import positions_of
from pipeline.measures.table import NUMERIC_AND_TEXT, read_measures
from pipeline.metadata import read_stored_metadata, stored_splits
from pipeline.quality.duplicates.pair_table import duplicate_groups, load_duplicates
from pipeline.quality.selection import durations_of, find_matches, mark_duplicates, parse_expression
from pipeline.records import Reason
from pipeline.segments import HELD_OUT_SPLITS
from pipeline.shards.format import WRITTEN
from pipeline.shards.ledger import SIDECAR_COLUMNS, match_segments, read_sidecar_table
from pipeline.snapshots.snapshot import Snapshot
from pipeline.snapshots.status import NOT_ATTEMPTED, count_classes, segment_statuses

NUM_COMMON_CLASSES = 24
"""Classes in the table of co-occurrences."""
NUM_PAIRS = 20
SILENT_SHARE = 0.9
SHARE = "of the clip"


@dataclass(frozen=True)
class Axis:
    """Histogram axis of a measure. Values outside count in the first or last bin."""

    label: str
    unit: str
    low: float
    high: float
    num_bins: int = 40
    is_logarithmic: bool = False
    """Logarithmic counts, so that rare bins remain visible beside a dominant one."""


AXES = {
    "duration_s": Axis("Length", "s", 0, 12, 48, is_logarithmic=True),
    "loudness_lufs": Axis("Loudness (EBU R128)", "LUFS", -70, 0, 35),
    "rms_db": Axis("Level (RMS)", "dBFS", -90, 0, 45),
    "peak": Axis("Peak", "of full scale", 0, 1.25),
    "silence": Axis("Digital silence", SHARE, 0, 1, is_logarithmic=True),
    "clipping": Axis("Clipped samples", SHARE, 0, 0.1, is_logarithmic=True),
    "bandwidth_hz": Axis("Bandwidth", "Hz", 0, 8000),
    "dc": Axis("DC", "of full scale", -0.1, 0.1, is_logarithmic=True),
    "bit_rate": Axis("Bit rate of the media", "bit/s", 0, 320_000),
    "media_length_s": Axis("Length of the media", "s", 0, 1200, is_logarithmic=True),
}


@dataclass(frozen=True)
class Flaw:
    """A possible defect of clips."""

    label: str
    expression: str
    """Condition for `--data.exclude`."""
    worst: str
    """Column that ranks the worst clips."""
    sign: int
    """1 if high values are bad, −1 if low ones are."""


FLAWS = (
    Flaw("Silent", f"silence > {SILENT_SHARE}", "silence", 1),
    Flaw("Clipped", "clipping > 0.01", "clipping", 1),
    Flaw("Hardly audible", f"loudness_lufs < -50 and silence <= {SILENT_SHARE}", "loudness_lufs", -1),
    Flaw("Narrow-band", "bandwidth_hz < 4500", "bandwidth_hz", -1),
    Flaw("Positive DC", "dc > 0.02", "dc", 1),
    Flaw("Negative DC", "dc < -0.02", "dc", -1),
    Flaw("Short", "duration_s < 3", "duration_s", -1),
)


def read_values(snapshot: Snapshot) -> dict[str, pa.ChunkedArray]:
    """Read measures, null for unmeasured clips, and `duration_s` of each clip (N,)."""
    table = read_measures(snapshot, NUMERIC_AND_TEXT)
    return {name: table[name] for name in table.column_names} | {"duration_s": durations_of(snapshot)}


def find_flaws(values: Mapping[str, pa.ChunkedArray]) -> dict[str, np.ndarray]:
    """Return a mask (N,) of affected clips per flaw label."""
    return {flaw.label: find_matches(parse_expression(flaw.expression), values) for flaw in FLAWS}


def describe_snapshot(
    snapshot: Snapshot, values: Mapping[str, pa.ChunkedArray], flaws: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the figures of a snapshot as a JSON value."""
    splits = snapshot.splits
    names = [str(name) for name in np.unique(splits)]
    rows_of = {name: np.flatnonzero(splits == name) for name in names}
    is_measured = ~pc.is_null(values["silence"]).to_numpy()
    is_flawed = np.logical_or.reduce(list(flaws.values()))
    return {
        "snapshot": snapshot.snapshot_id,
        "selection": snapshot.manifest.get("selection"),
        "num_clips": len(splits),
        "num_measured": int(is_measured.sum()),
        "num_flawed": int(is_flawed.sum()),
        "hours": float(pc.sum(values["duration_s"]).as_py() / 3600),
        "splits": _describe_splits(snapshot, rows_of, values["duration_s"].to_numpy()),
        "measures": {name: _histogram(values[name], axis, rows_of) for name, axis in AXES.items()},
        "media": {name: _count_values(values[name]) for name in ("codec", "rate_hz", "channels")},
        "flaws": {
            label: {split: int(is_so[rows].sum()) for split, rows in rows_of.items()} for label, is_so in flaws.items()
        },
        "duplicates": _describe_duplicates(snapshot),
        **_describe_classes(snapshot, is_flawed),
    }


def describe_store(snapshot: Snapshot) -> dict[str, Any]:
    """Count segment statuses of the snapshot's store, by month and by class.

    The month of a segment is that of the last write of its sidecar: the month of its run, unless the file was copied.
    Classes are null in a store without metadata.
    """
    store = snapshot.store
    sidecar_table = read_sidecar_table(store, snapshot.manifest["fingerprint"], SIDECAR_COLUMNS)
    category_of = {reason.value: reason.category.value for reason in Reason}
    statuses = sidecar_table["status"].cast(pa.string())
    reasons = sidecar_table["reason"].cast(pa.string()).to_pandas()
    category = reasons.map(category_of).where(~pc.equal(statuses, WRITTEN).to_numpy(), WRITTEN)
    shards = sidecar_table["shard"].combine_chunks()
    written_in = store.months("shards", ".parquet")
    months = pd.Series([written_in[f"{shard}.parquet"] for shard in shards.dictionary.to_pylist()], dtype=object)
    month = months.to_numpy()[shards.indices.to_numpy()]
    counts = pd.crosstab(month, category.to_numpy()) if len(month) else pd.DataFrame()
    described: dict[str, Any] = {
        "months": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in counts.iterrows()},
        "classes": None,
        "not_attempted": 0,
    }
    if splits := stored_splits(store):
        metadata = read_stored_metadata(store, splits)
        found = segment_statuses(metadata.segments, sidecar_table, match_segments(metadata.segments, sidecar_table))
        described["not_attempted"] = int((found["status"] == NOT_ATTEMPTED).sum())
        described["classes"] = count_classes(found, metadata.segments, metadata.labels).to_dict("records")
    return described


def _describe_splits(
    snapshot: Snapshot, rows_of: Mapping[str, np.ndarray], seconds: np.ndarray
) -> dict[str, dict[str, Any]]:
    counts = snapshot.manifest["split_counts"]
    nothing = {"planned": 0, "written": 0, "failed": {}}
    return {
        name: {
            **counts.get(name, nothing),
            "clips": len(rows_of.get(name, ())),
            "hours": float(seconds[rows_of[name]].sum() / 3600) if name in rows_of else 0.0,
        }
        for name in sorted({*counts, *rows_of})
    }


def _histogram(column: pa.ChunkedArray, axis: Axis, rows_of: Mapping[str, np.ndarray]) -> dict[str, Any]:
    values = column.cast(pa.float64()).to_numpy()  # null becomes NaN
    is_known = np.isfinite(values)
    edges = np.linspace(axis.low, axis.high, axis.num_bins + 1)
    counts, _ = np.histogram(np.clip(values[is_known], axis.low, axis.high), edges)
    medians = {name: values[rows][is_known[rows]] for name, rows in rows_of.items()}
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "num_known": int(is_known.sum()),
        "medians": {name: float(np.median(known)) for name, known in medians.items() if len(known)},
    }


def _count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Count the known values of a column, most frequent first."""
    counts = pd.Series(column.drop_null().to_pandas()).value_counts()
    return {str(value): int(count) for value, count in counts.items()}


def _describe_classes(snapshot: Snapshot, is_flawed: np.ndarray) -> dict[str, Any]:
    """Count clips and flawed clips per class, and co-occurrences of classes."""
    labels = snapshot.labels
    targets = snapshot.targets(np.arange(len(snapshot.index))).astype(np.int64)
    is_held_out = np.isin(snapshot.splits, HELD_OUT_SPLITS)
    together_CC = (targets.T @ targets).toarray()
    clips_C = together_CC.diagonal()
    held_out_C, flawed_C = targets.T @ is_held_out.astype(np.int64), targets.T @ is_flawed.astype(np.int64)
    classes = [
        {
            "mid": labels.mids[c],
            "name": labels.names[c],
            "train": int(clips_C[c] - held_out_C[c]),
            "held_out": int(held_out_C[c]),
            "flawed": int(flawed_C[c]),
        }
        for c in range(len(labels))
    ]
    common = np.argsort(-clips_C, kind="stable")[:NUM_COMMON_CLASSES]
    first, second = np.triu_indices(len(labels), 1)
    most = np.argsort(-together_CC[first, second], kind="stable")[:NUM_PAIRS]
    pairs = [
        {
            "first": labels.names[a],
            "second": labels.names[b],
            "clips": int(together_CC[a, b]),
            "share": float(together_CC[a, b] / min(clips_C[a], clips_C[b])),
        }
        for a, b in zip(first[most].tolist(), second[most].tolist(), strict=True)
        if together_CC[a, b]
    ]
    common_table = {
        "names": [labels.names[c] for c in common],
        "clips": together_CC[np.ix_(common, common)].tolist(),
    }
    return {"classes": classes, "pairs_of_classes": pairs, "common_classes": common_table}


def _describe_duplicates(snapshot: Snapshot) -> dict[str, Any]:
    """Count repeated training clips, and held-out clips with their sound or media in the training data."""
    splits = snapshot.splits
    is_held_out = np.isin(splits, HELD_OUT_SPLITS)
    media = pc.replace_substring_regex(snapshot.index["key"], r"_\d+$", "").combine_chunks()
    is_trained_on = pc.is_in(media, value_set=media.filter(pa.array(~is_held_out))).to_numpy(zero_copy_only=False)
    is_shared = is_held_out & is_trained_on
    described: dict[str, Any] = {
        "is_known": False,
        "num_pairs": 0,
        "num_duplicates": 0,
        "num_of_eval": 0,
        "leaked": {},
        "same_media": {str(name): int((is_shared & (splits == name)).sum()) for name in np.unique(splits[is_held_out])},
        "pairs": [],
    }
    pairs = load_duplicates(snapshot)
    if pairs is None:
        return described
    groups = duplicate_groups(snapshot, pairs)
    found = mark_duplicates(groups, ~is_held_out, is_held_out)
    is_leaked = is_held_out & np.isin(groups, groups[~is_held_out])
    rows_P2 = np.stack([positions_of(pairs[name], snapshot.index["key"]) for name in ("first", "second")], -1)
    here = np.flatnonzero((rows_P2 >= 0).all(-1))  # clips outside of a selection have no row
    # Pairs across splits first, nearest first.
    is_within = is_held_out[rows_P2[here]].sum(-1) != 1
    shown = here[np.lexsort([pairs["distance"].to_numpy()[here], is_within])][:NUM_PAIRS]
    listed = [
        {**row, "first_split": str(splits[a]), "second_split": str(splits[b])}
        for row, (a, b) in zip(pairs.take(pa.array(shown)).to_pylist(), rows_P2[shown].tolist(), strict=True)
    ]
    return {
        **described,
        "is_known": True,
        "num_pairs": len(here),
        "num_duplicates": int(found["duplicate"].sum()),
        "num_of_eval": int(found["duplicate_of_eval"].sum()),
        "leaked": {str(name): int((is_leaked & (splits == name)).sum()) for name in np.unique(splits[is_held_out])},
        "pairs": listed,
    }
