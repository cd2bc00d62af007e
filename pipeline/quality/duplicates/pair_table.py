"""Write and read the table of near-identical pairs, which is stored next to a snapshot's index.

`snapshots/{id}/duplicates.parquet` is not part of the snapshot's digest, because it only depends on the clips and may
be added later.
"""

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.sparse import csgraph

from pipeline.errors import CorruptError
from pipeline.keys import positions_of
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import SnapshotFiles
from pipeline.store.tables import parquet_bytes, read_parquet

DUPLICATES_VERSION = 1
"""Version of the search and of its fingerprints. Tables of other versions are ignored."""
PAIRS_SCHEMA = pa.schema(
    [
        ("first", pa.string()),
        ("second", pa.string()),
        ("distance", pa.float32()),
        ("offset_s", pa.float32()),
    ]
)
"""Columns of a table of pairs. `first` precedes `second` in the index. Each clip of a group is only paired with the
first clip of the group (see `duplicate_groups`). `distance` is 0 for identical clips. `offset_s` is the start of
`second` within `first`."""
MAX_DISTANCE = 0.5
"""Largest distance between near-identical clips. Distances are defined in `pipeline.measures.fingerprint`."""
VERSION_KEY, THRESHOLD_KEY = b"duplicates", b"threshold"


def write_duplicates(snapshot: Snapshot, pairs: pa.Table, threshold: float) -> None:
    """Store a snapshot's pairs, sorted by clip, together with the distance threshold of the search."""
    ordered = pairs.cast(PAIRS_SCHEMA).sort_by([("first", "ascending"), ("second", "ascending")])
    metadata = {
        VERSION_KEY: str(DUPLICATES_VERSION).encode(),
        THRESHOLD_KEY: str(threshold).encode(),
    }
    snapshot.store.write_bytes(_name_of(snapshot), parquet_bytes(ordered.replace_schema_metadata(metadata)))


def load_duplicates(snapshot: Snapshot) -> pa.Table | None:
    """Return a snapshot's near-identical pairs (`PAIRS_SCHEMA`), or None if no search has been made.

    Raises CorruptError if the file is not a valid table.
    """
    store, name = snapshot.store, _name_of(snapshot)
    if not store.exists(name):
        return None
    try:
        table = read_parquet(store.read_bytes(name))
        if (table.schema.metadata or {}).get(VERSION_KEY) != str(DUPLICATES_VERSION).encode():
            return None
        return table.select(PAIRS_SCHEMA.names).cast(PAIRS_SCHEMA.with_metadata(table.schema.metadata))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptError(
            f"{store.url(name)} is not a valid table of duplicates: {error}; remove it and run"
            " `preprocess.py duplicates`"
        ) from error


def duplicate_groups(snapshot: Snapshot, pairs: pa.Table) -> np.ndarray:
    """Return a group number for each clip (N,). Clips have the same number if pairs connect them directly or
    indirectly.

    A clip without near-identical clips forms a group of its own.
    """
    keys, size = snapshot.index["key"], len(snapshot.index)
    named = pa.chunked_array([*pairs["first"].chunks, *pairs["second"].chunks], pa.string())
    nodes = positions_of(named, keys)
    # Include clips outside a selection, because the first clip of a group, which connects it, may be one of them.
    is_absent = nodes < 0
    absent = named.filter(pa.array(is_absent)).combine_chunks().dictionary_encode()
    nodes[is_absent] = size + absent.indices.to_numpy()
    num_nodes = size + len(absent.dictionary)
    edges = sparse.coo_array((np.ones(len(pairs), bool), tuple(nodes.reshape(2, -1))), shape=(num_nodes, num_nodes))
    return csgraph.connected_components(edges, directed=False)[1][:size]


def _name_of(snapshot: Snapshot) -> str:
    return SnapshotFiles(snapshot.whole_id).duplicates
