"""Fingerprints of clips, by which near-identical ones are known: another codec, rate, level or start changes little.

A fingerprint says of `NUM_BANDS` pairs of neighbouring bands, 25 times a second, whether the balance between the two is
above or below its average of the two seconds around, or close to it. A level changes no balance, and neither does a
filter, such as a telephone's, its course; what codecs leave out lies above `HIGH_BIN` or far below the clip's peaks.
Steady sounds and silence have no such course: their fingerprints say nothing, and match nothing, not even each other.
"""

# Letters: N clips, T frames, M mel bins, P steps, B bands or pairs of them.

from collections.abc import Sequence
from functools import lru_cache, reduce

import numpy as np

from pipeline.fbank_settings import FRAME_SHIFT_MS

LOW_BIN, HIGH_BIN = 16, 84
"""Mel bins that count, from 280 Hz to 2.9 kHz: what a telephone passes, too."""
NUM_BANDS = 16
BANDS_MB = np.kron(np.eye(NUM_BANDS + 1), np.full((4, 1), 1 / 4)).astype(np.float32)
"""Averages of 4 mel bins each."""
STEP_FRAMES = 4
STEP_S = STEP_FRAMES * FRAME_SHIFT_MS / 1000
NUM_STEPS = 250
"""Of the first 10 s; what a longer clip has after them does not count."""
WINDOW_FRAMES = 16
"""Frames that are averaged for a step: four times its length, so that a start between two steps changes little."""
RANGE_NATS = 10.0
"""Below the loudest band (43 dB), nothing counts: there codecs differ."""
AROUND_STEPS = 25
"""To each side, whose average a balance is compared with."""
IS_AROUND_PP = np.triu(np.tri(NUM_STEPS, k=AROUND_STEPS, dtype=np.float32), -AROUND_STEPS)
MIN_NATS, MIN_SHARE = 0.1, 0.5
"""A balance this close to its average counts as close, the latter as a share of the clip's deviation."""

MAX_SHIFT_STEPS = 15
"""Two clips are compared at starts up to 0.6 s apart."""
CHANCE = 7.0
"""Similarity that clips have by chance at the best of a trillion comparisons, times the root of their cells."""
MIN_CELLS = 200
"""Cells, of `NUM_STEPS` times `NUM_BANDS`, that must be above or below, or there is too little to compare."""


def fingerprint_of(fbank_TM: np.ndarray) -> bytes:
    """Return the fingerprint of a fbank (T, 128), as shards hold it: 4 bytes a step, at most 1,000."""
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
    """Count the steps around each (P, 1)."""
    return IS_AROUND_PP[:num_steps, :num_steps].sum(1, keepdims=True)


def _window_averages(bands_TB: np.ndarray) -> np.ndarray:
    """Average the window of each step: (T, B) → (P, B)."""
    # Sums of slices: a sum over an axis of four, or a window's view, takes several times as long.
    steps_PB = reduce(np.add, (bands_TB[place::STEP_FRAMES] for place in range(STEP_FRAMES)))
    per_window = WINDOW_FRAMES // STEP_FRAMES
    num_windows = len(steps_PB) - per_window + 1
    return reduce(np.add, (steps_PB[place : place + num_windows] for place in range(per_window))) / WINDOW_FRAMES


def unpack(fingerprints: Sequence[bytes | None]) -> np.ndarray:
    """Return fingerprints as words (N, NUM_STEPS) of uint32; None is empty.

    The lower 16 bits say which pairs of bands are above their average, the upper 16 which are below.
    """
    content = b"".join((each or b"").ljust(NUM_STEPS * 4, b"\0") for each in fingerprints)
    return np.frombuffer(content, "<u4").reshape(len(fingerprints), NUM_STEPS)


def count_cells(words: np.ndarray) -> np.ndarray:
    """Count the cells that are above or below: (N, P) → (N,)."""
    return np.bitwise_count(words).sum(1, dtype=np.int32)


def count_agreement(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the cells (N, P) that are above or below in both, and those that are opposed: two times (N,)."""
    # Opposed is where one agrees with the other's halves exchanged.
    exchanged = second << np.uint32(NUM_BANDS) | second >> np.uint32(NUM_BANDS)
    return count_cells(first & second), count_cells(first & exchanged)


def distances(first: np.ndarray, second: np.ndarray, shift: np.ndarray | int) -> np.ndarray:
    """Return how far clips (N, NUM_STEPS) are from others whose step 0 is step `shift` of theirs: (N,) in [0, 2].

    0 is identical, 1 is what chance brings. The fewer cells there are, the more they agree by chance.
    shift: (N,), or one for all, up to `MAX_SHIFT_STEPS` + 1 to either side.
    """
    num_first, num_second = count_cells(first), count_cells(second)
    room = MAX_SHIFT_STEPS + 1
    steps = np.arange(room, room + NUM_STEPS) - np.reshape(shift, (-1, 1))
    aligned = np.take_along_axis(np.pad(second, ((0, 0), (room, room))), steps, axis=1)
    num_agreeing, num_opposed = count_agreement(first, aligned)
    # Cells that only one of them has, since it starts earlier, count as not agreeing.
    similarity = (num_agreeing - num_opposed) / np.sqrt(np.maximum(num_first * num_second.astype(float), 1))
    num_cells = np.minimum(num_first, num_second)
    chance = CHANCE / np.sqrt(np.maximum(num_cells, MIN_CELLS))
    return np.where(num_cells < MIN_CELLS, 1.0, (1 - similarity) / (1 - chance)).astype(np.float32)


def closest(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of clips (N, NUM_STEPS) from others at the best shift, and that shift in seconds."""
    # The nearest to none first, which is taken where several are as good.
    shifts = np.array(sorted(range(-MAX_SHIFT_STEPS, MAX_SHIFT_STEPS + 1), key=abs))
    found = np.stack([distances(first, second, shift) for shift in shifts])
    best = found.argmin(0)
    return found[best, np.arange(len(first))], (shifts[best] * STEP_S).astype(np.float32)
