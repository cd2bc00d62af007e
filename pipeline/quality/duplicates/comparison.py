"""Compare the clips in a cell. Clips whose anchors have similar vectors are then compared by their fingerprints."""

import numpy as np

from pipeline.measures.fingerprint import MAX_SHIFT_STEPS, STEP_S, distances
from pipeline.quality.duplicates.anchors import SCALE
from pipeline.quality.duplicates.pair_table import MAX_DISTANCE

PAIR_DTYPE = np.dtype([("first", "<i4"), ("second", "<i4"), ("distance", "<f4"), ("offset_s", "<f4")])
COMPARED_CLIPS = 2**11
"""Number of candidate pairs per batch."""
COMPARED_ANCHORS = 2**9
"""Number of anchors per batch. The score matrix of a batch fits in the CPU cache."""
NUM_SHIFTS = 2 * MAX_SHIFT_STEPS + 1
MAX_DISTANCE_NEARBY = 0.8
"""Largest distance between copies if the shift is wrong by one step."""


def compare_cell(anchors: np.ndarray, words: np.ndarray, min_similarity: float) -> np.ndarray:
    """Return the near-identical pairs (`PAIR_DTYPE`) among the clips that some anchors (`ANCHOR_DTYPE`) belong to.

    A clip becomes a leader if no earlier clip is similar to it. Each clip is only compared with earlier leaders, so a
    thousand copies are all compared with a single leader.
    """
    anchors = anchors[np.argsort(anchors["step"], kind="stable")]
    vectors = anchors["vector"].astype(np.float32) / SCALE
    leaders, found = np.empty(0, np.intp), [np.empty(0, PAIR_DTYPE)]
    for start in range(0, len(anchors), COMPARED_ANCHORS):
        block = np.arange(start, min(start + COMPARED_ANCHORS, len(anchors)))
        # Anchors are sorted by step. Drop leaders that are too early for all remaining anchors.
        leaders = leaders[anchors["step"][leaders] >= anchors["step"][start] - MAX_SHIFT_STEPS]
        known = _verify(*_resembling(vectors, block, leaders, min_similarity), anchors, words)
        new = block[~np.isin(anchors["clip"][block], known["second"])]
        second, first = _resembling(vectors, new, new, min_similarity)
        among_new = _verify(second[first < second], first[first < second], anchors, words)
        found += [known, among_new]
        leaders = np.append(leaders, new[~np.isin(anchors["clip"][new], among_new["second"])])
    return np.concatenate(found)


def _resembling(
    vectors: np.ndarray, rows: np.ndarray, among: np.ndarray, min_similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of row indices whose vectors are similar, in sorted order."""
    is_similar = vectors[rows] @ vectors[among].T >= min_similarity
    second, first = np.divmod(np.flatnonzero(is_similar), max(len(among), 1))  # several times as fast as `nonzero`
    return rows[second], among[first]


def _verify(second: np.ndarray, first: np.ndarray, anchors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Compare the fingerprints of clips with similar anchors, and return the close pairs.

    Each clip is compared with 1, 2, 4 … candidates at once until one of them is close. If there are many copies, the
    first candidate is enough.
    """
    clip, other = anchors["clip"][second].astype(np.int64), anchors["clip"][first]
    shift = anchors["step"][first].astype(np.int64) - anchors["step"][second]
    is_possible = (clip != other) & (abs(shift) <= MAX_SHIFT_STEPS)
    # Pack each candidate into a single number, because numbers sort a hundred times as fast as rows of three numbers.
    packed = (clip * len(words) + other) * NUM_SHIFTS + shift + MAX_SHIFT_STEPS
    packed = np.sort(packed[is_possible])
    packed = packed[np.append(True, np.diff(packed) > 0)[: len(packed)]]  # `unique` takes five times as long
    found, num_at_once = [np.empty(0, PAIR_DTYPE)], 1
    while len(packed):
        second = packed // NUM_SHIFTS // len(words)
        is_next = np.arange(len(packed)) - np.searchsorted(second, second) < num_at_once
        first, shift = packed[is_next] // NUM_SHIFTS % len(words), packed[is_next] % NUM_SHIFTS - MAX_SHIFT_STEPS
        close = _keep_close(second[is_next], first, shift, words)
        found.append(close)
        packed = packed[~is_next & ~np.isin(second, close["second"])]
        num_at_once *= 2
    return np.concatenate(found)


def _keep_close(seconds: np.ndarray, firsts: np.ndarray, shifts: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the candidate pairs whose fingerprints are close at the given shifts (N,)."""
    found = [np.empty(0, PAIR_DTYPE)]
    for start in range(0, len(seconds), COMPARED_CLIPS):
        second, first, shift = (each[start : start + COMPARED_CLIPS] for each in (seconds, firsts, shifts))
        near = distances(words[first], words[second], shift)
        # Shifts are rarely whole steps. Therefore try the neighbouring shifts as well, but only for the few candidates
        # that pass the first test.
        again = np.flatnonzero(near <= MAX_DISTANCE_NEARBY)
        for more in (-1, 1):
            other = distances(words[first[again]], words[second[again]], shift[again] + more)
            near[again] = np.minimum(near[again], other)
        pairs = np.zeros(len(first), PAIR_DTYPE)
        pairs["first"], pairs["second"], pairs["distance"], pairs["offset_s"] = first, second, near, shift * STEP_S
        found.append(pairs[near <= MAX_DISTANCE])
    return np.concatenate(found)
