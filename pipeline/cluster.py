"""Ray: start or join it, and run independent tasks in a bounded window."""

import heapq
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import PaceConfig
from pipeline.errors import StoreError
from pipeline.sources.rate_limit import LocalPacer, Permit, Wait

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

LOCAL_OBJECT_STORE_BYTES = 200 * 2**20
"""Only plans, paths and reports travel through it."""
NUM_TASK_RETRIES = 3
"""Repetitions of a task whose worker or node died."""
MAX_STORE_ERRORS = 3
"""Of a task; the last one counts."""
STORE_PAUSE_S = 5.0
"""Before a task that the store refused is tried again; it doubles with each further time."""
POLL_S = 10.0
FRESH_S = 1.0
"""How long a permit without a limit is good."""
ORDER = count()


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Join the Ray that `RAY_ADDRESS` names, which Ray Jobs sets, or start one of our own and end it."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
    else:
        # Ray tells of its start and of the token that it made: nothing to do for the user.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        ray.init(
            address="local",
            logging_level=logging.WARNING,
            num_cpus=num_cpus,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            runtime_env={"worker_process_setup_hook": _keep_cleaner_quiet},
            log_to_driver=True,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _keep_cleaner_quiet() -> None:
    """Let Ray Train's cleaner not complain that there is no dashboard, nor that others run a Ray here, too.

    It is for clusters that outlive a run: this Ray ends with us, and with it all.
    """
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or args.thread.name != "PlacementGroupCleanerMonitor":
            usual(args)

    threading.excepthook = hook


def run_tasks(
    function: Callable[[Item, Shared], Result | Wait],
    items: Iterable[Item],
    shared: Shared,
    *,
    max_in_flight: int,
    give_up: Callable[[float], bool] = lambda wait_s: False,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run `function(item, shared)` for each item on the cluster and yield items and results as they finish.

    At most `max_in_flight` are handed out at a time, each on one CPU. A task whose worker died is repeated, so it
    must be idempotent. One that gives back a Wait is handed out again later, and so is one that the store refused, a
    few times. Any other that fails yields its exception. If all wait and `give_up(seconds to wait)` says so, the
    rest is left undone.
    """
    task = ray.remote(num_cpus=1, max_retries=NUM_TASK_RETRIES)(function)
    shared_ref = ray.put(shared)
    fresh = iter(items)
    later: list[tuple[float, int, Item]] = []
    running: dict[ray.ObjectRef, Item] = {}
    num_errors: Counter[int] = Counter()
    said_until_s = 0.0
    while True:
        while len(running) < max_in_flight and (item := _next_item(later, fresh)) is not None:
            running[task.remote(item, shared_ref)] = item
        if not running and not later:
            return
        wait_s = later[0][0] - time.monotonic() if later else None
        if not running and wait_s is not None and wait_s > 0:
            if give_up(wait_s):
                return
            time.sleep(min(wait_s, POLL_S))
            continue
        timeout_s = None if wait_s is None or len(running) >= max_in_flight else max(0.0, wait_s)
        for ref in ray.wait(list(running), num_returns=1, timeout=timeout_s)[0]:
            item = running.pop(ref)
            outcome = _get(ref)
            pause_s = outcome.seconds if isinstance(outcome, Wait) else None
            if isinstance(outcome, StoreError) and num_errors[id(item)] + 1 < MAX_STORE_ERRORS:
                pause_s = STORE_PAUSE_S * 2 ** num_errors[id(item)]
                num_errors[id(item)] += 1
                if time.monotonic() > said_until_s:  # all that run now meet the same
                    said_until_s = time.monotonic() + pause_s
                    log.warning("trying again in %.0f s: %s", pause_s, outcome)
            if pause_s is not None:
                heapq.heappush(later, (time.monotonic() + pause_s, next(ORDER), item))
            elif not isinstance(outcome, Wait):
                yield item, outcome


def _next_item(later: list[tuple[float, int, Item]], fresh: Iterator[Item]) -> Item | None:
    """Return what waited long enough, else a fresh item, else None."""
    if later and later[0][0] <= time.monotonic():
        return heapq.heappop(later)[2]
    return next(fresh, None)


def _get(ref: ray.ObjectRef) -> Any:
    """Return a task's result, or what it raised where that is known."""
    try:
        return ray.get(ref)
    except RayError as error:
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, Exception) else error


class _Keeper(LocalPacer):
    """The one `Pace` of a run, as an actor, for any addresses."""

    def ask_for(self, addresses: Sequence[str]) -> Permit | Wait:
        return self.pace.ask(addresses, time.monotonic())


@dataclass
class RayPacer:
    """A worker's way to the pace. Without a limit per hour it asks and tells once a second only."""

    actor: Any
    is_limited: bool
    proxies: tuple[str, ...] = ()
    _told_s: float = field(default=0.0, compare=False)
    _permit: tuple[Permit, float] | None = field(default=None, compare=False)

    def ask(self) -> Permit | Wait:
        if self._permit and time.monotonic() - self._permit[1] < FRESH_S:
            return self._permit[0]
        addresses = self.proxies or (ray.get_runtime_context().get_node_id(),)
        turn: Any = ray.get(self.actor.ask_for.remote(addresses))
        # With proxies the addresses take turns, so each is asked for.
        reusable = isinstance(turn, Permit) and not self.is_limited and not self.proxies
        self._permit = (turn, time.monotonic()) if reusable else None
        return turn

    def succeed(self, permit: Permit) -> None:
        if self.is_limited or self.proxies or time.monotonic() - self._told_s > FRESH_S:
            self._told_s = time.monotonic()
            self.actor.succeed.remote(permit)

    def throttle(self, permit: Permit, key: str, rest_s: float | None) -> int:
        self._permit = None
        self._told_s = 0.0
        return ray.get(self.actor.throttle.remote(permit, key, rest_s))

    def idle(self) -> tuple[float, int]:
        return ray.get(self.actor.idle.remote())


def start_pacer(config: PaceConfig, clips_per_hour: int, proxies: tuple[str, ...]) -> RayPacer:
    """Start the keeper of the pace; it ends with the run. It lives beside the driver: other nodes may be lost."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Keeper)
    actor = keeper.options(scheduling_strategy=here).remote(config, clips_per_hour)
    return RayPacer(actor, clips_per_hour > 0, proxies)
