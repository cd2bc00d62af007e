"""Match keys by the million: by their hashes, which take a tenth of the memory of a table of strings.

Hashes only propose; the keys themselves decide. Two different keys with one hash cost time, never a wrong row.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported.

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

BATCH_ROWS = 2**16
"""Keys that exist as Python strings at a time."""


def identities_of(table: pa.Table) -> pa.ChunkedArray:
    """Return what each row's audio is known by: key and end. Labels and split may be corrected without a new fetch."""
    return pc.binary_join_element_wise(table["key"], table["end_ms"].cast(pa.string()), "-")


def hashes_of(keys: pa.ChunkedArray) -> np.ndarray:
    """Return a hash of each key (N,). Python salts them differently in each process, so they must not leave it."""
    hashes = np.empty(len(keys), np.int64)
    for start in range(0, len(keys), BATCH_ROWS):
        batch = keys.slice(start, BATCH_ROWS).to_pylist()
        hashes[start : start + len(batch)] = [hash(key) for key in batch]
    return hashes


def has_repeats(keys: pa.ChunkedArray) -> bool:
    """Return whether a key may occur more than once: no is certain, yes hardly ever wrong."""
    hashes = np.sort(hashes_of(keys))
    return bool((hashes[1:] == hashes[:-1]).any())


def positions_of(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Return the row of each key (N,) in `among`, whose keys are unique; -1 where it is missing."""
    if not len(among):
        return np.full(len(keys), -1)
    index = pd.Index(hashes_of(among))
    if not index.is_unique:
        return _positions_by_name(keys, among)
    rows = index.get_indexer(pd.Index(hashes_of(keys)))
    matched = np.flatnonzero(rows >= 0)
    for start in range(0, len(matched), BATCH_ROWS):
        block = matched[start : start + BATCH_ROWS]
        if not keys.take(pa.array(block)).equals(among.take(pa.array(rows[block]))):
            # Two keys share a hash, which hardly ever happens: look them up the slow, certain way.
            return _positions_by_name(keys, among)
    return rows


def _positions_by_name(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Return the same as `positions_of`, from the keys themselves."""
    row_of = {key: row for row, key in enumerate(among.to_pylist())}
    return np.array([row_of.get(key, -1) for key in keys.to_pylist()])
