"""Exponential backoff with jitter."""

import random
from collections.abc import Iterator

JITTER = 0.3


def backoff(first_s: float, max_s: float, rng: random.Random | None = None) -> Iterator[float]:
    """Yield endless pauses that double up to `max_s`, each lengthened by up to 30 % at random.

    Clients that failed together must not retry together, hence the jitter, also at the maximum. Jitter never shortens a
    pause, because a server may have requested it.
    """
    uniform = (rng or random).uniform
    pause_s = first_s
    while True:
        pause_s = min(pause_s, max_s)
        yield pause_s * uniform(1, 1 + JITTER)
        pause_s *= 2
