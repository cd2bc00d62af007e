"""Summarise a snapshot: its clips per split, distributions of measures, flaws, duplicates and classes."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.measures.table import NUMERIC_AND_TEXT, read_measures
from pipeline.quality.class_tables import describe_classes
from pipeline.quality.distributions import AXES, compute_histogram, count_values
from pipeline.quality.duplicates.summary import describe_duplicates
from pipeline.quality.selection import durations_of
from pipeline.snapshots.snapshot import Snapshot


def read_values(snapshot: Snapshot) -> dict[str, pa.ChunkedArray]:
    """Read the measures and `duration_s` of each clip (N,). Clips without measures have nulls."""
    table = read_measures(snapshot, NUMERIC_AND_TEXT)
    return {name: table[name] for name in table.column_names} | {"duration_s": durations_of(snapshot)}


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
        "measures": {name: compute_histogram(values[name], axis, rows_of) for name, axis in AXES.items()},
        "media": {name: count_values(values[name]) for name in ("codec", "rate_hz", "channels")},
        "flaws": {
            label: {split: int(is_so[rows].sum()) for split, rows in rows_of.items()} for label, is_so in flaws.items()
        },
        "duplicates": describe_duplicates(snapshot),
        **describe_classes(snapshot, is_flawed),
    }


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
