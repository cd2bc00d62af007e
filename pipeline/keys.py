"""Match millions of keys by their hashes, using a tenth of the memory of a dict of strings.

Hashes find candidate matches, and the keys themselves are then compared. A hash collision therefore costs time but
never returns a wrong row.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array

BATCH_ROWS = 2**16
"""Number of keys to pad and compare per batch."""
MAX_CHARS = 96
"""Number of leading characters that a hash covers. Without this limit, a single damaged key of several megabytes would
pad its whole batch to that length."""
WORD_BYTES = 8
MULTIPLIERS = np.random.default_rng(0).integers(2**64, size=4 * MAX_CHARS // WORD_BYTES, dtype=np.uint64) | np.uint64(1)
"""Odd-valued factors, one for each 8-byte word of a key. A character takes up to 4 bytes."""


def identities_of(table: pa.Table) -> pa.ChunkedArray:
    """Return each row's audio identity, which is its key and end. Labels and splits are not part of it, so correcting
    them does not require a new fetch."""
    return pc.binary_join_element_wise(table["key"], table["end_ms"].cast(pa.string()), "-")


def hashes_of(keys: pa.ChunkedArray) -> np.ndarray:
    """Return the uint64 hash of each key (N,). Keys with the same first `MAX_CHARS` characters have the same hash."""
    hashes = np.zeros(len(keys), np.uint64)
    for start in range(0, len(keys), BATCH_ROWS):
        batch = pc.fill_null(keys.slice(start, BATCH_ROWS).combine_chunks(), "")
        if pc.max(pc.binary_length(batch)).as_py() > MAX_CHARS:
            batch = pc.utf8_slice_codeunits(batch, 0, MAX_CHARS)
        num_words = -(-pc.max(pc.binary_length(batch)).as_py() // WORD_BYTES)
        # Pad the keys with zero bytes to a matrix of words, because numpy hashes a matrix ten times as fast as Python
        # hashes strings. Padding adds 0 to a hash, so hashes do not depend on the batch.
        text = pc.ascii_rpad(batch, num_words * WORD_BYTES, "\0").buffers()[2]
        words = np.frombuffer(text, "<u8", len(batch) * num_words).reshape(len(batch), num_words)
        for column, multiplier in zip(words.T, MULTIPLIERS, strict=False):
            # Multiplication alone does not mix the bits of a word enough: the sums of some consecutive ids would
            # collide.
            hashes[start : start + len(batch)] += hash_array(column * multiplier, categorize=False)
    return hashes


def has_repeats(keys: pa.ChunkedArray) -> bool:
    """Return True if a key may occur more than once. False is certain, but True may be caused by a hash collision."""
    hashes = np.sort(hashes_of(keys))
    return bool((hashes[1:] == hashes[:-1]).any())


def positions_of(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Return the row of each key (N,) in `among`, or -1 if it is missing. The keys in `among` must be unique."""
    rows = _positions_of_hashes(hashes_of(keys), hashes_of(among))
    if rows is None:
        return _positions_by_name(keys, among)
    matched = np.flatnonzero(rows >= 0)
    for start in range(0, len(matched), BATCH_ROWS):
        block = matched[start : start + BATCH_ROWS]
        if not keys.take(pa.array(block)).equals(among.take(pa.array(rows[block]))):
            # Two different keys have the same hash, which is extremely rare. Fall back to the slow but exact lookup.
            return _positions_by_name(keys, among)
    return rows


def _positions_of_hashes(hashes: np.ndarray, among: np.ndarray) -> np.ndarray | None:
    """Return the row of each hash (N,) in `among`, or -1 if it is missing. Returns None if `among` has repeats."""
    rows = np.full(len(hashes), -1)
    # Group hashes by their first byte, so that each lookup table fits in the CPU cache.
    for wanted, offered in zip(_by_first_byte(hashes), _by_first_byte(among), strict=True):
        if not len(wanted) or not len(offered):
            continue
        index = pd.Index(among[offered])
        if not index.is_unique:
            return None
        found = index.get_indexer(pd.Index(hashes[wanted]))
        rows[wanted] = np.where(found >= 0, offered[found], -1)
    return rows


def _by_first_byte(hashes: np.ndarray) -> list[np.ndarray]:
    """Return 256 arrays, one per possible first byte, with the rows of the hashes that start with this byte."""
    first_byte = (hashes >> np.uint64(56)).astype(np.uint8)
    ends = np.cumsum(np.bincount(first_byte, minlength=256))
    return np.split(np.argsort(first_byte, kind="stable"), ends[:-1])


def _positions_by_name(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Do the same as `positions_of`, but compare the keys themselves."""
    row_of = {key: row for row, key in enumerate(among.to_pylist())}
    return np.array([row_of.get(key, -1) for key in keys.to_pylist()])
