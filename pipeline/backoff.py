"""Pauses between attempts."""

import random
from collections.abc import Iterator

JITTER = 0.3


def backoff(first_s: float, max_s: float, rng: random.Random | None = None) -> Iterator[float]:
    """Yield pauses without end: each twice the one before, up to `max_s`, and up to 30 % longer than that by chance.

    Those who failed at the same moment must not all come back at the same moment; hence the jitter, also at the
    ceiling. It only lengthens, because a pause that somebody asked for is kept.
    """
    uniform = (rng or random).uniform
    pause_s = first_s
    while True:
        pause_s = min(pause_s, max_s)
        yield pause_s * uniform(1, 1 + JITTER)
        pause_s *= 2
