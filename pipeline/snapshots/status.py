"""Count the planned, written and failed segments of each split, reason and class."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from pipeline.labels import Labels
from pipeline.records import Reason
from pipeline.shards.format import WRITTEN

NOT_ATTEMPTED = "not attempted"


def segment_statuses(segments: pa.Table, sidecar_table: pa.Table, rows: np.ndarray) -> pd.DataFrame:
    """Return the split and the status of each segment. The status is `written`, `not attempted` or the reason of the
    failure.

    rows: sidecar rows of the segments (N,), from `match_segments`.
    """
    status = pc.if_else(
        pc.equal(sidecar_table["status"].cast(pa.string()), WRITTEN),
        pa.scalar(WRITTEN),
        sidecar_table["reason"].cast(pa.string()),
    )
    found = pc.fill_null(status.take(pa.array(rows, mask=rows < 0)), NOT_ATTEMPTED)
    split = segments["split"].cast(pa.string()).to_pandas().astype("category")
    return pd.DataFrame({"split": split, "status": found.to_pandas().astype("category")})


def count_reasons(table: pd.DataFrame) -> pd.DataFrame:
    """Count the segments of each split, failure category and reason."""
    counts = table.value_counts(["split", "status"], sort=False).rename("segments").reset_index()
    counts = counts[counts["segments"] > 0]
    category_of = {reason.value: reason.category.value for reason in Reason}
    counts.insert(1, "category", counts["status"].astype(str).map(category_of).fillna(""))
    return counts.sort_values(["split", "category", "segments"], ascending=[True, True, False], ignore_index=True)


def count_classes(table: pd.DataFrame, segments: pa.Table, labels: Labels) -> pd.DataFrame:
    """Return the planned segments, the written segments and the yield of each class, with the lowest yield first."""
    combined = segments["labels"].combine_chunks()
    codes, is_written = combined.indices.to_numpy(), table["status"].eq(WRITTEN).to_numpy()
    # Count the distinct sets of labels first, because there are far fewer sets than segments.
    sets = combined.dictionary.to_pylist()
    planned_of_set = np.bincount(codes, minlength=len(sets))
    written_of_set = np.bincount(codes[is_written], minlength=len(sets))
    pairs = [
        (code, labels.index_of[mid])
        for code, mids in enumerate(sets)
        for mid in mids.split(",")
        if mid in labels.index_of
    ]
    set_of_pair, class_of_pair = np.array(pairs, np.int64).reshape(-1, 2).T
    planned = np.bincount(class_of_pair, planned_of_set[set_of_pair], len(labels)).astype(int)
    written = np.bincount(class_of_pair, written_of_set[set_of_pair], len(labels)).astype(int)
    counts = pd.DataFrame({"name": labels.names, "planned": planned, "written": written})
    counts = counts[counts["planned"] > 0]
    counts["yield"] = counts["written"] / counts["planned"]
    return counts.sort_values(["yield", "planned"], ignore_index=True)


def plot_failures(failed: Mapping[Reason, int], num_written: int) -> Figure:
    """Plot the number of segments that failed for each reason, with the most frequent reason at the top."""
    counts = pd.Series(failed, dtype=int).sort_values()
    figure = Figure(figsize=(8, 1.4 + 0.25 * len(counts)), layout="constrained")
    axes = figure.subplots()
    axes.barh([f"{reason}: {count}" for reason, count in counts.items()], counts, color="tab:red")
    axes.set_xlabel("segments")
    axes.set_title(f"{counts.sum()} of {counts.sum() + num_written} segments are unavailable", size=10)
    return figure
