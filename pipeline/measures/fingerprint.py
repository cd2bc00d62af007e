"""Acoustic fingerprints that match near-identical clips even if their codecs, rates, levels or start times differ.

A fingerprint covers `NUM_BANDS` pairs of neighbouring frequency bands. 25 times a second, it records for each pair
whether the balance of its two bands is above, below or close to a moving average over two seconds. These signs do not
change if a clip is amplified or filtered, for example by a telephone line. Content above `HIGH_BIN` or far below the
clip's peaks is ignored, because codecs may remove it. The balances of steady sounds and silence are constant, so their
fingerprints are empty and match nothing, not even each other.
"""

# Letters: N clips, T frames, M mel bins, P steps, B bands or pairs of them.

from collections.abc import Sequence
from functools import lru_cache, reduce

import numpy as np

from pipeline.fbank_settings import FRAME_SHIFT_MS

LOW_BIN, HIGH_BIN = 16, 84
"""Range of mel bins, from 280 Hz to 2.9 kHz. Telephones transmit this range as well."""
NUM_BANDS = 16
BANDS_MB = np.kron(np.eye(NUM_BANDS + 1), np.full((4, 1), 1 / 4)).astype(np.float32)
"""Matrix that averages each group of 4 mel bins."""
STEP_FRAMES = 4
STEP_S = STEP_FRAMES * FRAME_SHIFT_MS / 1000
NUM_STEPS = 250
"""Number of steps in a fingerprint. They cover the first 10 s of a clip."""
WINDOW_FRAMES = 16
"""Number of frames that are averaged for each step. This is four times the length of a step, so it hardly matters if a
copy starts between two steps."""
RANGE_NATS = 10.0
"""Range of levels below the loudest band that is used (43 dB). Softer content differs between codecs."""
AROUND_STEPS = 25
"""Half-width, in steps, of the moving average that each balance is compared with."""
IS_AROUND_PP = np.triu(np.tri(NUM_STEPS, k=AROUND_STEPS, dtype=np.float32), -AROUND_STEPS)
MIN_NATS, MIN_SHARE = 0.1, 0.5
"""Largest distance from the average that counts as close, in nats and as a share of the clip's standard deviation. The
larger of the two limits applies."""

MAX_SHIFT_STEPS = 15
"""Largest shift at which two clips are compared, in steps (0.6 s)."""
CHANCE = 7.0
"""Highest similarity that occurs by chance in a trillion comparisons, multiplied by the square root of the number of
cells."""
MIN_CELLS = 200
"""Minimum number of cells (of `NUM_STEPS` × `NUM_BANDS`) that must be above or below their average for a comparison."""


def fingerprint_of(fbank_TM: np.ndarray) -> bytes:
    """Return the fingerprint of a stored fbank (T, 128). It has 4 bytes per step and at most 1,000 bytes."""
    num_steps = min((len(fbank_TM) - WINDOW_FRAMES) // STEP_FRAMES + 1, NUM_STEPS)
    if num_steps < 1:
        return b""
    frames_TM = fbank_TM[: (num_steps - 1) * STEP_FRAMES + WINDOW_FRAMES, LOW_BIN:HIGH_BIN]
    bands_TB = frames_TM.astype(np.float32, copy=False) @ BANDS_MB
    loudest = _window_averages(bands_TB).max()
    averages_PB = _window_averages(np.maximum(bands_TB, loudest - RANGE_NATS))
    balances_PB = averages_PB[:, 1:] - averages_PB[:, :-1]
    deviations_PB = balances_PB - IS_AROUND_PP[:num_steps, :num_steps] @ balances_PB / _num_around(num_steps)
    limit = max(MIN_NATS, MIN_SHARE * float(np.sqrt(np.square(deviations_PB).mean())))
    return np.packbits(np.concatenate([deviations_PB > limit, deviations_PB < -limit], axis=1), axis=1).tobytes()


@lru_cache(maxsize=16)
def _num_around(num_steps: int) -> np.ndarray:
    """Return the number of steps that the moving average of each step covers (P, 1)."""
    return IS_AROUND_PP[:num_steps, :num_steps].sum(1, keepdims=True)


def _window_averages(bands_TB: np.ndarray) -> np.ndarray:
    """Average the frames (T, B) in each step's window. Returns averages (P, B)."""
    # Adding slices is several times as fast as summing over an axis of length four or over a sliding window view.
    steps_PB = reduce(np.add, (bands_TB[place::STEP_FRAMES] for place in range(STEP_FRAMES)))
    per_window = WINDOW_FRAMES // STEP_FRAMES
    num_windows = len(steps_PB) - per_window + 1
    return reduce(np.add, (steps_PB[place : place + num_windows] for place in range(per_window))) / WINDOW_FRAMES


def unpack(fingerprints: Sequence[bytes | None]) -> np.ndarray:
    """Decode fingerprints to uint32 words (N, NUM_STEPS). None becomes an empty fingerprint.

    The lower 16 bits mark the pairs of bands that are above their average, and the upper 16 bits mark the pairs below.
    """
    content = b"".join((each or b"").ljust(NUM_STEPS * 4, b"\0") for each in fingerprints)
    return np.frombuffer(content, "<u4").reshape(len(fingerprints), NUM_STEPS)


def count_cells(words: np.ndarray) -> np.ndarray:
    """Count the cells of each fingerprint (N, P) that are above or below their average. Returns counts (N,)."""
    return np.bitwise_count(words).sum(1, dtype=np.int32)


def count_agreement(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the cells with equal signs (N,) and the cells with opposite signs (N,) in two arrays of words (N, P)."""
    # If the two halves of a word are swapped, opposite signs become equal signs.
    exchanged = second << np.uint32(NUM_BANDS) | second >> np.uint32(NUM_BANDS)
    return count_cells(first & second), count_cells(first & exchanged)


def distances(first: np.ndarray, second: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """Return the distances (N,) between pairs of fingerprints (N, NUM_STEPS), shifted against each other.

    A distance of 0 means identical. If the distance is 1 or more, the clips may be this similar by chance, which is
    more likely if they have few cells.

    shift: start of the second clip within the first, in steps. An array (N,) or a scalar, at most ±(`MAX_SHIFT_STEPS` +
    1).
    """
    num_first, num_second = count_cells(first), count_cells(second)
    room = MAX_SHIFT_STEPS + 1
    steps = np.arange(room, room + NUM_STEPS) - np.reshape(shift, (-1, 1))
    aligned = np.take_along_axis(np.pad(second, ((0, 0), (room, room))), steps, axis=1)
    num_agreeing, num_opposed = count_agreement(first, aligned)
    # Cells outside the overlap count as disagreement.
    similarity = (num_agreeing - num_opposed) / np.sqrt(np.maximum(num_first * num_second.astype(float), 1))
    num_cells = np.minimum(num_first, num_second)
    chance = CHANCE / np.sqrt(np.maximum(num_cells, MIN_CELLS))
    return np.where(num_cells < MIN_CELLS, 1.0, (1 - similarity) / (1 - chance)).astype(np.float32)


def closest(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances (N,) between pairs of fingerprints at their best shifts, and these shifts in seconds."""
    # Try the smallest shifts first, so that they win ties.
    shifts = np.array(sorted(range(-MAX_SHIFT_STEPS, MAX_SHIFT_STEPS + 1), key=abs))
    found = np.stack([distances(first, second, shift) for shift in shifts])
    best = found.argmin(0)
    return found[best, np.arange(len(first))], (shifts[best] * STEP_S).astype(np.float32)
