"""Exponential backoff with jitter."""

import random
from collections.abc import Iterator

JITTER = 0.3


def backoff(first_s: float, max_s: float, rng: random.Random | None = None) -> Iterator[float]:
    """Yield an endless sequence of pauses that double up to `max_s`. Jitter lengthens each pause by up to 30 %.

    Jitter prevents clients that failed together from retrying together, even once they have reached the maximum. It
    never shortens a pause, because the server may have requested this length.
    """
    uniform = (rng or random).uniform
    pause_s = first_s
    while True:
        pause_s = min(pause_s, max_s)
        yield pause_s * uniform(1, 1 + JITTER)
        pause_s *= 2
