"""Rate limits and circuit breakers for each address. All workers of a run share one limiter.

If the source throttles an address, or if one clip after another fails, the address cools down. After the cooldown, it
sends single probes until the source responds, which closes the circuit.
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
"""Minimum cooldown in seconds, even if `Retry-After` asks for less."""
PROBE_S = 120.0
"""Seconds between two probes of an address that was throttled. If a probe gives no result within this time, the next
one is sent."""
PROBE_POLL_S = 1.0
"""Seconds between the requests for a permit while a probe is running."""
MAX_FAILURES_IN_A_ROW = 5
"""If this many different clips fail in a row, the source counts as down."""
LOCAL_ADDRESS = "local"


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission to send one request from this address."""

    address: str


@dataclass(frozen=True, slots=True)
class Wait:
    """No permit is available yet. Ask again after `seconds`."""

    seconds: float
    is_cooldown: bool
    """True if every address is cooling down, so the wait may be long."""
    is_outage: bool = False
    """True if the source is down. The clips that have just failed must then be fetched again."""


@dataclass(frozen=True, slots=True)
class LimiterStatus:
    """The status of a run's requests to its source."""

    idle_s: float
    """Seconds since the source last responded, or since the start of the run."""
    num_throttled: int
    """Number of throttled requests."""
    outage: str
    """The failure because of which the source is considered to be down. Empty if it is up."""
    num_addresses: int = 0
    num_cooling: int = 0
    """Number of addresses that are cooling down."""


class RateLimiter(Protocol):
    """Interface of a rate limiter. Workers acquire a permit before each attempt and then report the result."""

    def acquire(self) -> Permit | Wait: ...

    def report_success(self, permit: Permit) -> None:
        """Report that the source responded, even if the response was "no such clip"."""
        ...

    def report_throttled(self, permit: Permit, key: str, retry_after_s: float | None) -> int:
        """Report that the source throttled the address. Returns the number of such reports for this clip."""
        ...

    def report_outage(self, permit: Permit, key: str, detail: str) -> bool:
        """Report a failure that may be an outage. Returns True if it is an outage and must not count as an attempt at
        the clip."""
        ...

    def status(self) -> LimiterStatus: ...


@dataclass
class _Address:
    next_s: float = 0.0
    """Earliest time of the next permit."""
    cool_at_s: float = 0.0
    """Time at which the cooldown ends."""
    pauses: Iterator[float] | None = None
    """Lengths of the next cooldowns. None while the circuit is closed."""
    probe_every_s: float = 0.0
    """Seconds between two probes. Probes are sent after a cooldown until the source responds."""
    failed_keys: set[str] = field(default_factory=set)
    """Clips that have failed since the last response or cooldown."""
    outage: str = ""
    """The failure that opened the circuit."""


class LocalRateLimiter:
    """A rate limiter for one process. It is thread-safe."""

    def __init__(
        self,
        config: RateLimitConfig | None = None,
        clips_per_hour: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ):
        """clips_per_hour: limit for each address. 0 means no limit."""
        self.config = config or RateLimitConfig()
        self.clips_per_hour = clips_per_hour
        self._clock, self._rng = clock, rng or random.Random()
        self._addresses: dict[str, _Address] = defaultdict(_Address)
        self._num_throttled: Counter[str] = Counter()
        self._last_answer_s = clock()
        self._lock = threading.Lock()

    def __reduce__(self):
        """Pickle only the settings, so that a copy in another process starts with fresh limits."""
        return type(self), (self.config, self.clips_per_hour)

    def acquire(self, addresses: Sequence[str] = (LOCAL_ADDRESS,)) -> Permit | Wait:
        """Return a permit for the address that is available first, or the time to wait until it is available."""
        with self._lock:
            now_s = self._clock()
            name = min(addresses, key=lambda name: max(self._addresses[name].next_s, self._addresses[name].cool_at_s))
            address = self._addresses[name]
            wait_s = max(address.next_s, address.cool_at_s) - now_s
            if wait_s > 0:
                if all(self._addresses[each].cool_at_s > now_s for each in addresses):
                    return Wait(wait_s, is_cooldown=True, is_outage=bool(address.outage))
                # Ask again soon, because the response to a probe may close the circuit at any moment.
                return Wait(min(wait_s, PROBE_POLL_S) if address.pauses else wait_s, is_cooldown=False)
            if address.pauses:  # the circuit is half-open
                address.next_s = now_s + address.probe_every_s
            elif self.clips_per_hour:
                # Add jitter, because sources might recognise evenly spaced requests as automated.
                jitter = self._rng.uniform(1 - JITTER, 1 + JITTER)
                address.next_s = now_s + SECONDS_PER_HOUR / self.clips_per_hour * jitter
            return Permit(name)

    def report_success(self, permit: Permit) -> None:
        with self._lock:
            now_s = self._last_answer_s = self._clock()
            address = self._addresses[permit.address]
            address.failed_keys.clear()
            # A response that arrives during a cooldown belongs to an earlier request and does not close the circuit.
            if address.pauses and address.cool_at_s <= now_s:
                address.pauses, address.next_s, address.outage = None, now_s, ""

    def report_throttled(self, permit: Permit, key: str, retry_after_s: float | None = None) -> int:
        with self._lock:
            address = self._addresses[permit.address]
            # Requests that were already in flight are throttled as well, but must not extend the cooldown.
            if not self._cools_down(address):
                pause_s = self._cool_down(address, self.config.cooldown_s, PROBE_S, retry_after_s)
                log.warning("the source throttled an address, which cools down for %.0f s", pause_s)
            self._num_throttled[key] += 1
            return self._num_throttled[key]

    def report_outage(self, permit: Permit, key: str, detail: str) -> bool:
        with self._lock:
            address = self._addresses[permit.address]
            if self._cools_down(address):
                return True
            # Count different clips, and start again after each cooldown, so that a single broken clip can never stop
            # the run.
            address.failed_keys.add(key)
            if len(address.failed_keys) < MAX_FAILURES_IN_A_ROW:
                return False
            pause_s = self._cool_down(address, self.config.outage_cooldown_s, PROBE_POLL_S)
            address.outage = detail
            log.warning("the source fails for clip after clip; retrying in %.0f s: %s", pause_s, detail)
            return True

    def status(self) -> LimiterStatus:
        with self._lock:
            outage = next((address.outage for address in self._addresses.values() if address.outage), "")
            num_cooling = sum(map(self._cools_down, self._addresses.values()))
            return LimiterStatus(
                self._clock() - self._last_answer_s,
                self._num_throttled.total(),
                outage,
                num_addresses=len(self._addresses),
                num_cooling=num_cooling,
            )

    def _cools_down(self, address: _Address) -> bool:
        return address.cool_at_s > self._clock()

    def _cool_down(
        self, address: _Address, first_s: float, probe_every_s: float, retry_after_s: float | None = None
    ) -> float:
        """Start a cooldown and return its length in seconds. Cooldowns become longer until the source responds."""
        max_s = self.config.max_cooldown_s
        address.pauses = address.pauses or backoff(first_s, max_s, self._rng)
        pause_s = next(address.pauses)
        if retry_after_s is not None:
            # `backoff` limits absurd values. Its jitter prevents addresses that were throttled together from returning
            # together.
            pause_s = next(backoff(max(retry_after_s, MIN_COOLDOWN_S), max_s, self._rng))
        address.cool_at_s, address.next_s, address.probe_every_s = self._clock() + pause_s, 0.0, probe_every_s
        address.failed_keys.clear()
        address.outage = ""
        return pause_s
