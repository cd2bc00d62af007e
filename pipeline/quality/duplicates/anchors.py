"""Find anchors: a few characteristic steps per clip, at the same sounds in all copies of the clip.

A vector describes about one second around each anchor. Since only these vectors are compared, millions of clips can be
searched.
"""

# Letters: N clips, P steps, A anchors, V values of a vector.

import numpy as np
from scipy import ndimage

from pipeline.measures.fingerprint import NUM_BANDS

AROUND_STEPS = 32
"""Number of steps that a vector describes."""
NUM_BASES = 8
"""Number of cosines along the bands and along the steps. A vector has `NUM_BASES`² values."""
NUM_ANCHORS, ANCHOR_SPACING = 5, 12
"""Maximum number of anchors per clip and sign, and the minimum distance between them in steps."""
SCALE = 127
"""Factor that scales the values of vectors to int8."""

ANCHOR_DTYPE = np.dtype([("clip", "<i4"), ("step", "<i2"), ("vector", "i1", NUM_BASES**2)])


def _cosines(length: int, count: int) -> np.ndarray:
    """Return the first `count` cosines as an array (length, count). Each cosine has norm 1."""
    waves = np.cos(np.pi * (np.arange(length)[:, None] + 0.5) * np.arange(count) / length)
    return (waves / np.linalg.norm(waves, axis=0)).astype(np.float32)


def _tabulate(weights: np.ndarray) -> np.ndarray:
    """Return a table (2**16, …) with a row for each 16-bit word: the sum of the weights (NUM_BANDS, …) of its set
    bits."""
    bits = np.unpackbits(np.arange(2**16, dtype="<u2").view(np.uint8).reshape(-1, 2), axis=1)
    return bits.astype(np.float32) @ weights


BANDS_BY_WORD = _tabulate(_cosines(NUM_BANDS, NUM_BASES))
STEP_WAVES = _cosines(AROUND_STEPS, NUM_BASES) * np.hanning(AROUND_STEPS + 2)[1:-1, None].astype(np.float32)
# Any fixed pattern would work, except a very smooth pattern, for which the peaks of the fit would be broad.
ANCHOR_BY_WORD = _tabulate(_cosines(NUM_BANDS, NUM_BASES) @ np.array([0, 1, -1, 1, 1, 0, 0, 0], np.float32))
ANCHOR_STEPS = STEP_WAVES @ np.array([0, 0, 1, 1, -1, 0, 0, 0], np.float32)


def find_anchors(words: np.ndarray) -> np.ndarray:
    """Return the anchors (`ANCHOR_DTYPE`) of clips, given their fingerprints (N, NUM_STEPS)."""
    course_NP = _look_up(ANCHOR_BY_WORD, words)
    fit_NP = ndimage.correlate1d(course_NP, ANCHOR_STEPS, axis=1, mode="constant")
    clip_A, step_A = np.concatenate([_peaks(fit_NP), _peaks(-fit_NP)], axis=1)
    around = np.pad(words, ((0, 0), (AROUND_STEPS // 2, AROUND_STEPS // 2)))
    bands = _look_up(BANDS_BY_WORD, around[clip_A[:, None], step_A[:, None] + np.arange(AROUND_STEPS)])
    vector_AV = (np.swapaxes(bands, 1, 2) @ STEP_WAVES).reshape(-1, NUM_BASES**2)
    vector_AV /= np.maximum(np.linalg.norm(vector_AV, axis=1, keepdims=True), 1e-6)
    anchors = np.empty(len(clip_A), ANCHOR_DTYPE)
    anchors["clip"], anchors["step"], anchors["vector"] = clip_A, step_A, np.rint(vector_AV * SCALE)
    return anchors


def _look_up(table: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the sum of the weights of all bands above their average, minus the sum for all bands below."""
    return table[words & 0xFFFF] - table[words >> NUM_BANDS]


def _peaks(fit_NP: np.ndarray) -> np.ndarray:
    """Return the clips and the steps of the highest peaks (2, A)."""
    is_peak = (fit_NP == ndimage.maximum_filter1d(fit_NP, 2 * ANCHOR_SPACING + 1, axis=1)) & (fit_NP > 0)
    highest = np.argpartition(np.where(is_peak, -fit_NP, 0), NUM_ANCHORS, axis=1)[:, :NUM_ANCHORS]
    clip_A, place_A = np.nonzero(np.take_along_axis(is_peak, highest, axis=1))
    return np.stack([clip_A, highest[clip_A, place_A]])
