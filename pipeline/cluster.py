"""Ray: start or join it, and run independent tasks in a bounded window."""

import heapq
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from threadpoolctl import threadpool_limits

from pipeline.backoff import backoff
from pipeline.config import RateLimitConfig
from pipeline.errors import StoreError
from pipeline.sources.rate_limit import LimiterStatus, LocalRateLimiter, Permit, Wait

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
MAX_STORE_PAUSE_S = 60.0
TASKS_PER_PROCESSOR = 2
"""To hand out at a time, so that no processor waits for the driver."""
POLL_S = 10.0
"""How often a run that waits asks whether it should stop."""
FRESH_S = 1.0
"""How long a permit without a limit is good, and a success worth reporting again."""


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Join the Ray that `RAY_ADDRESS` names, which Ray Jobs sets, or start one of our own and end it."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True, runtime_env={"worker_process_setup_hook": _keep_waiting_quiet})
    else:
        # Ray reports its start and the token that it made: nothing to do for the user.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        ray.init(
            address="local",
            logging_level=logging.WARNING,
            num_cpus=num_cpus,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            runtime_env={"worker_process_setup_hook": _keep_local_ray_quiet},
            log_to_driver=True,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _keep_waiting_quiet() -> None:
    """Silence Ray Train's client of the autoscaler.

    It waits 5 s for an answer; on a busy machine that is late, and it warns with the traceback of a GetTimeoutError,
    though it asks again.
    """
    client = "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"
    logging.getLogger(client).setLevel(logging.ERROR)


def _keep_local_ray_quiet() -> None:
    """Silence Ray Train's cleaner, too, which complains that there is no dashboard, or that others run a Ray here.

    It is for clusters that outlive a run; this Ray ends with the run.
    """
    _keep_waiting_quiet()
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or args.thread.name != "PlacementGroupCleanerMonitor":
            usual(args)

    threading.excepthook = hook


def count_processors(use_gpu: bool) -> int:
    """Return how many tasks of a GPU, or a CPU, each the cluster runs at a time."""
    return max(1, int(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 1)))


@dataclass(order=True)
class _Task(Generic[Item]):
    """An item on its way: handed out, or waiting until it is handed out again."""

    due_s: float
    order: int
    """Of tasks that are due at the same time."""
    item: Item = field(compare=False)
    num_refusals: int = field(default=0, compare=False)
    """Times that the store refused it."""
    pauses: Iterator[float] = field(
        default_factory=lambda: backoff(STORE_PAUSE_S, MAX_STORE_PAUSE_S), compare=False, repr=False
    )

    def pause_after(self, result: object) -> float | None:
        """Return the seconds until it is to be tried again; None if this result is the last."""
        if isinstance(result, Wait):
            return result.seconds
        # Object stores refuse now and then, which passes; what they never take would be tried forever.
        if isinstance(result, StoreError) and self.num_refusals + 1 < MAX_STORE_ERRORS:
            self.num_refusals += 1
            return next(self.pauses)
        return None


def run_tasks(
    function: Callable[[Item, Shared], Result | Wait],
    items: Iterable[Item],
    shared: Shared,
    *,
    max_in_flight: int,
    num_gpus: int = 0,
    on_this_node: bool = False,
    should_stop: Callable[[float], bool] = lambda wait_s: False,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run `function(item, shared)` for each item on the cluster and yield items and results as they finish.

    At most `max_in_flight` are handed out at a time, each on one CPU and `num_gpus` GPUs; `on_this_node`, where tasks
    share local files, they all run beside the driver. A task whose worker died is repeated, so it must be idempotent.
    One that returns a Wait is handed out again later, and so is one that the store refused, a few times. Any other that
    fails yields its exception. If all wait and `should_stop(seconds to wait)` says so, the rest is left undone.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=NUM_TASK_RETRIES)(_on_one_thread(function))
    if on_this_node:  # which may be a cluster's head, where Ray has no CPUs to give
        remote = remote.options(num_cpus=0, scheduling_strategy=this_node())
    shared_ref = ray.put(shared)  # once, not with each task
    # Items are taken when there is room for them: two million segments are never planned at once.
    fresh = (_Task(0.0, order, item) for order, item in enumerate(items))
    waiting: list[_Task[Item]] = []  # a heap: the one that is due first comes first
    running: dict[ray.ObjectRef, _Task[Item]] = {}
    warned_until_s = 0.0
    while True:
        while len(running) < max_in_flight:
            # What waited goes first; while it still waits others may go on, perhaps on another node.
            is_due = waiting and waiting[0].due_s <= time.monotonic()
            task = heapq.heappop(waiting) if is_due else next(fresh, None)
            if task is None:
                break
            running[remote.remote(task.item, shared_ref)] = task
        if not running and not waiting:
            return
        wait_s = max(0.0, waiting[0].due_s - time.monotonic()) if waiting else None
        if not running and wait_s is not None:
            if should_stop(wait_s):
                return
            time.sleep(min(wait_s, POLL_S))
            continue
        # Without a free place nothing that becomes due could be handed out, so only a result is worth waking up for.
        timeout_s = wait_s if len(running) < max_in_flight else None
        for ref in ray.wait(list(running), num_returns=1, timeout=timeout_s)[0]:
            task, result = running.pop(ref), _result_of(ref)
            pause_s = task.pause_after(result)
            if pause_s is None:
                yield task.item, result
                continue
            task.due_s = time.monotonic() + pause_s
            heapq.heappush(waiting, task)
            if isinstance(result, StoreError) and time.monotonic() > warned_until_s:
                warned_until_s = task.due_s  # all that run now meet the same refusal
                log.warning("retrying in %.0f s: %s", pause_s, result)


def _on_one_thread(function: Callable[[Item, Shared], Result]) -> Callable[[Item, Shared], Result]:
    """Keep NumPy to one thread while a task runs.

    It takes one for each core, which wait for their work by spinning: those of several tasks take each other's time.
    """

    @wraps(function)
    def run(item: Item, shared: Shared) -> Result:
        with threadpool_limits(1, user_api="blas"):
            return function(item, shared)

    return run


def _result_of(ref: ray.ObjectRef) -> Any:
    """Return a task's result, or what it raised where that is known."""
    try:
        return ray.get(ref)
    except RayError as error:
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, Exception) else error


def this_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that keeps a task or actor beside the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


@dataclass
class RayRateLimiter:
    """A worker's side of the run's one limiter, which is an actor.

    An answer costs a message to it only where that matters: without a limit per hour once a second.
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
        # Proxies take turns, so that each of them has to be asked for.
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
        # Most successes are not reported, so the limiter can't tell "in a row"; but here it is known.
        if not self.proxies and time.monotonic() - self._succeeded_s < FRESH_S:
            return False
        self._permit, self._reported_s = None, 0.0
        return ray.get(self.actor.report_outage.remote(permit, key, detail))

    def status(self) -> LimiterStatus:
        return ray.get(self.actor.status.remote())


def start_rate_limiter(config: RateLimitConfig, clips_per_hour: int, proxies: tuple[str, ...]) -> RayRateLimiter:
    """Start the run's limiter; it ends with the run. It lives beside the driver: other nodes may be lost."""
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(LocalRateLimiter)
    actor = remote.options(scheduling_strategy=this_node()).remote(config, clips_per_hour)
    return RayRateLimiter(actor, clips_per_hour > 0, proxies)
