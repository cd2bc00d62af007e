"""Match keys by the million: by their hashes, which take a tenth of the memory of a table of strings.

Hashes only propose; the keys themselves decide. Two different keys with one hash cost time, never a wrong row.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported.

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array

BATCH_ROWS = 2**16
"""Keys that are padded, or compared, at a time."""
MAX_CHARS = 96
"""Of a key that count for its hash: so a damaged one of megabytes does not make all others as long."""
WORD_BYTES = 8
MULTIPLIERS = np.random.default_rng(0).integers(2**64, size=4 * MAX_CHARS // WORD_BYTES, dtype=np.uint64) | np.uint64(1)
"""One for each word of 8 bytes, of which a character has up to 4."""


def identities_of(table: pa.Table) -> pa.ChunkedArray:
    """Return what each row's audio is known by: key and end. Labels and split may be corrected without a new fetch."""
    return pc.binary_join_element_wise(table["key"], table["end_ms"].cast(pa.string()), "-")


def hashes_of(keys: pa.ChunkedArray) -> np.ndarray:
    """Return a hash of each key (N,) of uint64. Keys of more than `MAX_CHARS` share that of their beginning."""
    hashes = np.zeros(len(keys), np.uint64)
    for start in range(0, len(keys), BATCH_ROWS):
        batch = pc.fill_null(keys.slice(start, BATCH_ROWS).combine_chunks(), "")
        if pc.max(pc.binary_length(batch)).as_py() > MAX_CHARS:
            batch = pc.utf8_slice_codeunits(batch, 0, MAX_CHARS)
        num_words = -(-pc.max(pc.binary_length(batch)).as_py() // WORD_BYTES)
        # Padded with zero bytes to one length, the batch's text is a matrix of words: numpy hashes it ten times as
        # fast as Python does each string. A word of padding adds nothing, so the hash does not depend on the batch.
        text = pc.ascii_rpad(batch, num_words * WORD_BYTES, "\0").buffers()[2]
        words = np.frombuffer(text, "<u8", len(batch) * num_words).reshape(len(batch), num_words)
        for column, multiplier in zip(words.T, MULTIPLIERS, strict=False):
            # A product alone does not mix a word's bits enough: of consecutive ids some would have one sum.
            hashes[start : start + len(batch)] += hash_array(column * multiplier, categorize=False)
    return hashes


def has_repeats(keys: pa.ChunkedArray) -> bool:
    """Return whether a key may occur more than once: no is certain, yes hardly ever wrong."""
    hashes = np.sort(hashes_of(keys))
    return bool((hashes[1:] == hashes[:-1]).any())


def positions_of(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Return the row of each key (N,) in `among`, whose keys are unique; -1 where it is missing."""
    rows = _positions_of_hashes(hashes_of(keys), hashes_of(among))
    if rows is None:
        return _positions_by_name(keys, among)
    matched = np.flatnonzero(rows >= 0)
    for start in range(0, len(matched), BATCH_ROWS):
        block = matched[start : start + BATCH_ROWS]
        if not keys.take(pa.array(block)).equals(among.take(pa.array(rows[block]))):
            # Two keys share a hash, which hardly ever happens: look them up the slow, certain way.
            return _positions_by_name(keys, among)
    return rows


def _positions_of_hashes(hashes: np.ndarray, among: np.ndarray) -> np.ndarray | None:
    """Return the row of each hash (N,) in `among`, -1 where it is missing; None if some there may be equal."""
    rows = np.full(len(hashes), -1)
    # Those that begin alike at a time: a table of twenty million would lie outside of the processor's cache.
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
    """Return the rows of the hashes that begin with each byte."""
    first_byte = (hashes >> np.uint64(56)).astype(np.uint8)
    ends = np.cumsum(np.bincount(first_byte, minlength=256))
    return np.split(np.argsort(first_byte, kind="stable"), ends[:-1])


def _positions_by_name(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Return the same as `positions_of`, from the keys themselves."""
    row_of = {key: row for row, key in enumerate(among.to_pylist())}
    return np.array([row_of.get(key, -1) for key in keys.to_pylist()])
