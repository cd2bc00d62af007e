"""Pace: limits are per address, so each address has its own spacing and its own breaker.

An address that is told that it asks too often rests; after the rest it may ask once, and goes on if that comes back.
One `Pace` keeps the books for all workers. The time is given to it.
"""

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.config import PaceConfig

SECONDS_PER_HOUR = 3600.0
JITTER = 0.3
"""A pause is longer or shorter by up to this share."""
SHORTEST_REST_S = 1.0
"""Whatever the other side asks for."""
PROBE_S = 120.0
"""How long nobody else asks while a probe is out. A probe that never comes back is forgotten then."""
PROBE_POLL_S = 1.0
"""The others look for its answer so often."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to ask once, from this address."""

    address: str


@dataclass(frozen=True, slots=True)
class Wait:
    """No leave yet: ask again in a while."""

    seconds: float
    is_rest: bool
    """Every address was throttled, so it may take long."""


class Pacer(Protocol):
    """What a worker asks before each attempt, and tells after it."""

    def ask(self) -> Permit | Wait: ...

    def succeed(self, permit: Permit) -> None: ...

    def throttle(self, permit: Permit, key: str, rest_s: float | None) -> int: ...

    def idle(self) -> tuple[float, int]:
        """Return the seconds since the last answer, and how often an address was throttled so far."""
        ...


@dataclass
class _Address:
    next_s: float = 0.0
    """Not asked from before."""
    rests_until_s: float = 0.0
    num_rests: int = 0
    """In a row, without an answer between them."""


@dataclass
class Pace:
    """The books of all addresses. May be used from several threads."""

    config: PaceConfig
    clips_per_hour: int
    """0 is no limit."""
    chance: random.Random = field(default_factory=random.Random)
    num_throttled: int = 0
    last_answer_s: float | None = None
    _addresses: dict[str, _Address] = field(default_factory=lambda: defaultdict(_Address))
    _throttled_clips: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, addresses: Sequence[str], now_s: float) -> Permit | Wait:
        """Give leave to the address that may ask soonest, or say when to ask again."""
        with self._lock:
            sidecar_table = [(self._addresses[name], name) for name in addresses]
            book, address = min(sidecar_table, key=lambda pair: max(pair[0].next_s, pair[0].rests_until_s))
            wait_s = max(book.next_s, book.rests_until_s) - now_s
            if wait_s > 0:
                is_rest = all(book.rests_until_s > now_s for book, _ in sidecar_table)
                return Wait(min(wait_s, PROBE_POLL_S) if book.num_rests and not is_rest else wait_s, is_rest)
            if book.num_rests:
                book.next_s = now_s + PROBE_S
            elif self.clips_per_hour:
                book.next_s = now_s + SECONDS_PER_HOUR / self.clips_per_hour * self.chance.uniform(
                    1 - JITTER, 1 + JITTER
                )
            return Permit(address)

    def succeed(self, address: str, now_s: float) -> None:
        """Say that an answer came, whatever it was, but no throttling."""
        with self._lock:
            book = self._addresses[address]
            self.last_answer_s = now_s
            if book.num_rests and book.rests_until_s <= now_s:
                book.num_rests, book.next_s = 0, now_s

    def throttle(self, address: str, key: str, now_s: float, rest_s: float | None = None) -> int:
        """Let an address rest, for `rest_s` if that was asked for; return how often this clip was answered so.

        Answers to what was asked before the rest began don't prolong it.
        """
        with self._lock:
            book = self._addresses[address]
            self.num_throttled += 1
            if book.rests_until_s <= now_s:
                usual_s = self.config.rest_s * 2**book.num_rests
                wanted_s = usual_s if rest_s is None else max(rest_s, SHORTEST_REST_S)
                book.rests_until_s = now_s + min(wanted_s, self.config.max_rest_s) * self.chance.uniform(1, 1 + JITTER)
                book.next_s = 0.0
                book.num_rests += 1
            self._throttled_clips[key] += 1
            return self._throttled_clips[key]


class LocalPacer:
    """The pace of a single process, from one address."""

    def __init__(self, config: PaceConfig | None = None, clips_per_hour: int = 0):
        self.pace = Pace(config or PaceConfig(), clips_per_hour)
        self.started_s = time.monotonic()

    def __reduce__(self):
        """Another process paces itself."""
        return type(self), (self.pace.config, self.pace.clips_per_hour)

    def ask(self) -> Permit | Wait:
        return self.pace.ask(["here"], time.monotonic())

    def succeed(self, permit: Permit) -> None:
        self.pace.succeed(permit.address, time.monotonic())

    def throttle(self, permit: Permit, key: str, rest_s: float | None) -> int:
        return self.pace.throttle(permit.address, key, time.monotonic(), rest_s)

    def idle(self) -> tuple[float, int]:
        return time.monotonic() - (self.pace.last_answer_s or self.started_s), self.pace.num_throttled
