"""How far a data set is: planned, written and failed segments, per split, reason and class."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported.

from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure

from pipeline.labels import Labels
from pipeline.records import Reason
from pipeline.shards.format import WRITTEN

MISSING = "not visited"


def segment_statuses(segments: pa.Table, sidecar_table: pa.Table) -> pd.DataFrame:
    """Return a row per planned segment: split, and what became of it: `written`, a reason, or `not visited`."""
    status = pc.if_else(
        pc.equal(sidecar_table["status"].cast(pa.string()), WRITTEN),
        pa.scalar(WRITTEN),
        sidecar_table["reason"].cast(pa.string()),
    )
    place = pc.index_in(segments["key"], value_set=sidecar_table["key"].combine_chunks())
    found = pc.fill_null(status.take(place), MISSING) if len(sidecar_table) else pa.array([MISSING] * len(segments))
    split = segments["split"].cast(pa.string()).to_pandas().astype("category")
    return pd.DataFrame({"split": split, "status": found.to_pandas().astype("category")})


def count_reasons(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per split, kind and reason with the number of segments."""
    counts = table.value_counts(["split", "status"], sort=False).rename("segments").reset_index()
    counts = counts[counts["segments"] > 0]
    kind_of = {reason.value: reason.category.value for reason in Reason}
    counts.insert(1, "kind", counts["status"].astype(str).map(kind_of).fillna(""))
    return counts.sort_values(["split", "kind", "segments"], ascending=[True, True, False], ignore_index=True)


def count_classes(table: pd.DataFrame, segments: pa.Table, labels: Labels) -> pd.DataFrame:
    """Return a row per class, those with the least yield first: planned, written, yield."""
    combined = segments["labels"].combine_chunks()
    written = pd.Series(table["status"].eq(WRITTEN).to_numpy())
    by_code = written.groupby(combined.indices.to_numpy()).agg(["size", "sum"])
    planned, kept = pd.Series(0, index=labels.mids), pd.Series(0, index=labels.mids)
    for code, mids in enumerate(combined.dictionary.to_pylist()):
        if code in by_code.index:
            wanted = [mid for mid in mids.split(",") if mid in planned.index]
            planned[wanted] += int(by_code.at[code, "size"])
            kept[wanted] += int(by_code.at[code, "sum"])
    counts = pd.DataFrame({"name": labels.names, "planned": planned.to_numpy(), "written": kept.to_numpy()})
    counts = counts[counts["planned"] > 0]
    counts["yield"] = counts["written"] / counts["planned"]
    return counts.sort_values(["yield", "planned"], ignore_index=True)


def due(table: pd.DataFrame, retry: Sequence[str]) -> int:
    """Count what a rerun would visit that tries the kinds in `retry` again."""
    again = {reason.value for reason in Reason if reason.category in retry} | {MISSING}
    return int(table["status"].isin(again).sum())


def plot_failures(failed: Mapping[Reason, int], num_written: int) -> Figure:
    """Draw how many segments failed, by reason, most first."""
    counts = pd.Series(failed, dtype=int).sort_values()
    figure = Figure(figsize=(8, 1.4 + 0.25 * len(counts)), layout="constrained")
    axes = figure.subplots()
    axes.barh([f"{reason}: {count}" for reason, count in counts.items()], counts, color="tab:red")
    axes.set_xlabel("segments")
    axes.set_title(f"{counts.sum()} of {counts.sum() + num_written} segments could not be had", size=10)
    return figure
