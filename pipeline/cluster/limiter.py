"""The rate limiter that all nodes share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline.cluster.metrics import show_limiter
from pipeline.cluster.session import this_node
from pipeline.config import RateLimitConfig
from pipeline.sources.rate_limit import LOCAL_ADDRESS, LimiterStatus, LocalRateLimiter, Permit, Wait

FRESH_S = 1.0
"""If there is no hourly limit, a worker reuses a permit for this many seconds. It also waits this long between two
reports of success."""


@dataclass
class RayRateLimiter:
    """A client of the limiter actor. Each worker has its own client.

    Each call sends a message to the same actor. If there is no hourly limit, workers reuse their permits and report
    successes at most once a second, so that the actor keeps up with thousands of clips per second.
    """

    actor: Any
    is_limited: bool
    proxies: tuple[str, ...] = ()
    _permit: Permit | None = field(default=None, compare=False)
    _acquired_s: float = field(default=0.0, compare=False)
    _succeeded_s: float = field(default=0.0, compare=False)
    _reported_s: float = field(default=0.0, compare=False)

    def acquire(self) -> Permit | Wait:
        now_s = time.monotonic()
        if self._permit and now_s - self._acquired_s < FRESH_S:
            return self._permit
        addresses = self.proxies or (ray.get_runtime_context().get_node_id(),)
        turn: Any = ray.get(self.actor.acquire.remote(addresses))
        # Proxies take turns, so each request needs a permit of its own.
        is_reusable = isinstance(turn, Permit) and not self.is_limited and not self.proxies
        self._permit, self._acquired_s = (turn if is_reusable else None), now_s
        return turn

    def report_success(self, permit: Permit) -> None:
        now_s = self._succeeded_s = time.monotonic()
        if self.is_limited or self.proxies or now_s - self._reported_s > FRESH_S:
            self._reported_s = now_s
            self.actor.report_success.remote(permit)

    def report_throttled(self, permit: Permit, key: str, retry_after_s: float | None) -> int:
        self._permit, self._reported_s = None, 0.0
        return ray.get(self.actor.report_throttled.remote(permit, key, retry_after_s))

    def report_outage(self, permit: Permit, key: str, detail: str) -> bool:
        # The actor does not see most successes, so it can't tell whether failures occurred in a row. If this worker
        # succeeded recently, there is no outage.
        if not self.proxies and time.monotonic() - self._succeeded_s < FRESH_S:
            return False
        self._permit, self._reported_s = None, 0.0
        return ray.get(self.actor.report_outage.remote(permit, key, detail))

    def status(self) -> LimiterStatus:
        return ray.get(self.actor.status.remote())


class MeasuredRateLimiter(LocalRateLimiter):
    """A rate limiter that publishes its state as metrics, at most once a second and after each throttled request."""

    _shown_s = 0.0

    def acquire(self, addresses: Sequence[str] = (LOCAL_ADDRESS,)) -> Permit | Wait:
        turn = super().acquire(addresses)
        if time.monotonic() - self._shown_s > FRESH_S:
            self._show()
        return turn

    def report_throttled(self, permit: Permit, key: str, retry_after_s: float | None = None) -> int:
        num_throttled = super().report_throttled(permit, key, retry_after_s)
        self._show()
        return num_throttled

    def _show(self) -> None:
        self._shown_s = time.monotonic()
        show_limiter(self.status())


def start_rate_limiter(config: RateLimitConfig, clips_per_hour: int, proxies: tuple[str, ...]) -> RayRateLimiter:
    """Start the limiter actor of a run. It ends together with the run.

    The actor runs on the driver's node, because any other node may be lost.
    """
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(MeasuredRateLimiter)
    actor = remote.options(scheduling_strategy=this_node()).remote(config, clips_per_hour)
    return RayRateLimiter(actor, clips_per_hour > 0, proxies)
