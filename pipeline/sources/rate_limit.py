"""Rate limits: each address that asks the source has its own spacing and its own circuit breaker.

An address that is told that it asks too often, or whose clips fail one after the other, cools down. Afterwards few
clips probe; the first answer closes the circuit. One limiter serves all workers of a run.
"""

import logging
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.backoff import JITTER, backoff
from pipeline.config import RateLimitConfig

log = logging.getLogger(__name__)
SECONDS_PER_HOUR = 3600.0
MIN_COOLDOWN_S = 1.0
"""Whatever a `Retry-After` says."""
PROBE_S = 120.0
"""How long nobody else asks while a throttled address probes. A probe that never comes back is forgotten then."""
PROBE_POLL_S = 1.0
"""How often the others look for the probe's answer."""
MAX_FAILURES_IN_A_ROW = 5
"""Different clips that may fail one after the other before it is the source that fails."""
LOCAL = "here"


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to ask once, from this address."""

    address: str


@dataclass(frozen=True, slots=True)
class Wait:
    """No leave yet: ask again in a while."""

    seconds: float
    is_cooldown: bool
    """Every address is cooling down, so it may take long."""
    is_outage: bool = False
    """It is because the source doesn't answer: clips that just failed are no worse than others."""


@dataclass(frozen=True, slots=True)
class LimiterStatus:
    """State of a run's requests to its source."""

    idle_s: float
    """Seconds since the last answer, or the start."""
    num_throttled: int
    """Answers that an address asks too often."""
    outage: str
    """The last failure of a source that doesn't answer; empty while it does."""


class RateLimiter(Protocol):
    """A worker's side: asked before each attempt, told after it."""

    def acquire(self) -> Permit | Wait: ...

    def report_success(self, permit: Permit) -> None:
        """Report an answer, be it that there is no such clip."""
        ...

    def report_throttled(self, permit: Permit, key: str, retry_after_s: float | None) -> int:
        """Report that the address asks too often; return how often this clip was answered so."""
        ...

    def report_outage(self, permit: Permit, key: str, detail: str) -> bool:
        """Report a failure that may be the source's; return whether it is, so that it doesn't count for the clip."""
        ...

    def status(self) -> LimiterStatus: ...


@dataclass
class _Address:
    next_s: float = 0.0
    """Nobody asks before."""
    cool_at_s: float = 0.0
    """Time at which the cooldown ends."""
    pauses: Iterator[float] | None = None
    """The next cooldowns; none while the circuit is closed."""
    probe_every_s: float = 0.0
    """Spacing of the questions between a cooldown and the first answer."""
    failed_keys: set[str] = field(default_factory=set)
    """Clips that failed since the last answer or cooldown."""
    outage: str = ""
    """The last of the failures for which it cools down."""


class LocalRateLimiter:
    """The limits of all addresses, kept in one process. May be used from several threads."""

    def __init__(
        self,
        config: RateLimitConfig | None = None,
        clips_per_hour: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ):
        """clips_per_hour: 0 is no limit."""
        self.config = config or RateLimitConfig()
        self.clips_per_hour = clips_per_hour
        self._clock, self._rng = clock, rng or random.Random()
        self._addresses: dict[str, _Address] = defaultdict(_Address)
        self._num_throttled: Counter[str] = Counter()
        self._last_answer_s = clock()
        self._lock = threading.Lock()

    def __reduce__(self):
        """A copy in another process keeps limits of its own."""
        return type(self), (self.config, self.clips_per_hour)

    def acquire(self, addresses: Sequence[str] = (LOCAL,)) -> Permit | Wait:
        """Give leave to the address that may ask soonest, or say when to ask again."""
        with self._lock:
            now_s = self._clock()
            # The address that is free first, so that one that cools down does not hold up the others.
            name = min(addresses, key=lambda name: max(self._addresses[name].next_s, self._addresses[name].cool_at_s))
            address = self._addresses[name]
            wait_s = max(address.next_s, address.cool_at_s) - now_s
            if wait_s > 0:
                if all(self._addresses[each].cool_at_s > now_s for each in addresses):
                    return Wait(wait_s, is_cooldown=True, is_outage=bool(address.outage))
                # A probe is out. Its answer may come any moment and let the others go on at once.
                return Wait(min(wait_s, PROBE_POLL_S) if address.pauses else wait_s, is_cooldown=False)
            if address.pauses:  # half-open: few questions until the first answer
                address.next_s = now_s + address.probe_every_s
            elif self.clips_per_hour:
                # Even spacing would be as conspicuous as bursts.
                jitter = self._rng.uniform(1 - JITTER, 1 + JITTER)
                address.next_s = now_s + SECONDS_PER_HOUR / self.clips_per_hour * jitter
            return Permit(name)

    def report_success(self, permit: Permit) -> None:
        with self._lock:
            now_s = self._last_answer_s = self._clock()
            address = self._addresses[permit.address]
            address.failed_keys.clear()
            # During a cooldown it is a late answer to what was asked before: it says nothing of now.
            if address.pauses and address.cool_at_s <= now_s:
                address.pauses, address.next_s, address.outage = None, now_s, ""

    def report_throttled(self, permit: Permit, key: str, retry_after_s: float | None = None) -> int:
        with self._lock:
            address = self._addresses[permit.address]
            # Clips under way when the first was refused are refused too; they must not double the cooldown each.
            if not self._is_cooling(address):
                pause_s = self._cool_down(address, self.config.cooldown_s, PROBE_S, retry_after_s)
                log.warning("an address was throttled: cooling down for %.0f s", pause_s)
            self._num_throttled[key] += 1
            return self._num_throttled[key]

    def report_outage(self, permit: Permit, key: str, detail: str) -> bool:
        with self._lock:
            address = self._addresses[permit.address]
            if self._is_cooling(address):
                return True
            # Different clips, and as many again after each cooldown: one that never works must not stop the others.
            address.failed_keys.add(key)
            if len(address.failed_keys) < MAX_FAILURES_IN_A_ROW:
                return False
            pause_s = self._cool_down(address, self.config.outage_cooldown_s, PROBE_POLL_S)
            address.outage = detail
            log.warning("the source fails clip after clip: retrying in %.0f s: %s", pause_s, detail)
            return True

    def status(self) -> LimiterStatus:
        with self._lock:
            outage = next((address.outage for address in self._addresses.values() if address.outage), "")
            return LimiterStatus(self._clock() - self._last_answer_s, self._num_throttled.total(), outage)

    def _is_cooling(self, address: _Address) -> bool:
        """Whether it is cooling down; answers to what was asked before don't prolong that."""
        return address.cool_at_s > self._clock()

    def _cool_down(
        self, address: _Address, first_s: float, probe_every_s: float, retry_after_s: float | None = None
    ) -> float:
        """Start a cooldown, longer each time until an answer comes; return its seconds."""
        max_s = self.config.max_cooldown_s
        address.pauses = address.pauses or backoff(first_s, max_s, self._rng)
        pause_s = next(address.pauses)
        if retry_after_s is not None:  # bounded: a server may ask for a thousand years
            # With jitter, or all addresses that were refused together would come back together.
            pause_s = next(backoff(max(retry_after_s, MIN_COOLDOWN_S), max_s, self._rng))
        address.cool_at_s, address.next_s, address.probe_every_s = self._clock() + pause_s, 0.0, probe_every_s
        address.failed_keys.clear()
        address.outage = ""
        return pause_s
