"""Count the planned, written and failed segments of a store."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.metadata import read_stored_metadata, stored_splits
from pipeline.records import Reason
from pipeline.shards.format import WRITTEN
from pipeline.shards.ledger import SIDECAR_COLUMNS, match_segments, read_sidecar_table
from pipeline.snapshots.origins import count_origins
from pipeline.snapshots.snapshot import Snapshot
from pipeline.snapshots.status import NOT_ATTEMPTED, count_classes, segment_statuses
from pipeline.store.layout import SHARDS, SIDECAR, Shard


def describe_store(snapshot: Snapshot) -> dict[str, Any]:
    """Count the segments of the snapshot's store by status, month, source and class.

    The month of a segment is the month in which its sidecar was last written. Unless the file was copied, this is the
    month in which it was preprocessed. The classes are null if the store has no metadata.
    """
    store = snapshot.store
    sidecar_table = read_sidecar_table(store, snapshot.manifest["fingerprint"], SIDECAR_COLUMNS)
    category_of = {reason.value: reason.category.value for reason in Reason}
    statuses = sidecar_table["status"].cast(pa.string())
    reasons = sidecar_table["reason"].cast(pa.string()).to_pandas()
    category = reasons.map(category_of).where(~pc.equal(statuses, WRITTEN).to_numpy(), WRITTEN)
    shards = sidecar_table["shard"].combine_chunks()
    written_in = store.months(SHARDS, SIDECAR)
    months = pd.Series([written_in[Shard.of(shard).sidecar] for shard in shards.dictionary.to_pylist()], dtype=object)
    month = months.to_numpy()[shards.indices.to_numpy()]
    counts = pd.crosstab(month, category.to_numpy()) if len(month) else pd.DataFrame()
    described: dict[str, Any] = {
        "months": {str(name): {str(k): int(v) for k, v in row.items()} for name, row in counts.iterrows()},
        "sources": count_origins(store),
        "classes": None,
        "not_attempted": 0,
    }
    if splits := stored_splits(store):
        metadata = read_stored_metadata(store, splits)
        found = segment_statuses(metadata.segments, sidecar_table, match_segments(metadata.segments, sidecar_table))
        described["not_attempted"] = int((found["status"] == NOT_ATTEMPTED).sum())
        described["classes"] = count_classes(found, metadata.segments, metadata.labels).to_dict("records")
    return described
