"""Run independent, idempotent Ray tasks in a bounded window."""

import heapq
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    WorkerCrashedError,
)
from threadpoolctl import threadpool_limits

from pipeline.backoff import backoff
from pipeline.cluster.metrics import show_tasks
from pipeline.cluster.placement import ON_FETCH_NODES, ON_TRAIN_NODES
from pipeline.cluster.session import this_node
from pipeline.errors import LeaseError, StoreError, WorkerError, describe
from pipeline.sources.rate_limit import Wait

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

DEATHS = (LocalRayletDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
"""Errors that Ray raises if a task loses its worker, its node or its result."""
MAX_DEATHS = 4
"""Number of consecutive deaths of a task's workers without progress after which the task fails."""
DEATH_PAUSE_S = 1.0
MAX_STORE_ERRORS = 3
"""Maximum attempts at a task that fails with StoreErrors. The last error is its result."""
STORE_PAUSE_S = 5.0
"""Pause before the first retry after a StoreError. It doubles with each further retry."""
MAX_STORE_PAUSE_S = 60.0
TASKS_PER_PROCESSOR = 2
"""Tasks to submit per processor, so that no processor waits for the driver."""
POLL_S = 10.0
"""Seconds between checks whether a waiting run should stop."""


@dataclass(order=True)
class _Task(Generic[Item]):
    """A submitted item, or an item that waits for its next submission."""

    due_s: float
    order: int
    """Breaks ties between tasks that are due at the same time."""
    item: Item = field(compare=False)
    num_refusals: int = field(default=0, compare=False)
    """Number of StoreErrors so far."""
    num_deaths: int = field(default=0, compare=False)
    """Number of workers that died since the last progress."""
    progress: int = field(default=0, compare=False)
    """Progress at the last death."""
    pauses: Iterator[float] = field(
        default_factory=lambda: backoff(STORE_PAUSE_S, MAX_STORE_PAUSE_S), compare=False, repr=False
    )

    def pause_after(self, result: object, progress_of: Callable[[Item], int]) -> float | None:
        """Return the seconds until the next attempt, or None if this result is final."""
        if isinstance(result, Wait):
            return result.seconds
        if isinstance(result, DEATHS):
            progress = progress_of(self.item)
            # Spot machines may interrupt a long task many times. Fail only tasks that never advance.
            self.num_deaths = 1 if progress > self.progress else self.num_deaths + 1
            self.progress = progress
            is_memory = isinstance(result, OutOfMemoryError)  # wait until concurrent tasks have freed some
            return None if self.num_deaths == MAX_DEATHS else next(self.pauses) if is_memory else DEATH_PAUSE_S
        # Object stores fail now and then. The limit ends tasks that can never be stored.
        is_refusal = isinstance(result, StoreError) and not isinstance(result, LeaseError)
        if is_refusal and self.num_refusals + 1 < MAX_STORE_ERRORS:
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
    progress_of: Callable[[Item], int] = lambda item: 0,
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run `function(item, shared)` for each item on the cluster. Yields items and results as they finish.

    Neither Ray Data nor ray.util.multiprocessing combines lazy submission, pauses per item that block no slot, and
    exceptions per item instead of one for all.

    Each task uses one CPU and `num_gpus` GPUs. Tasks that return a Wait, raise StoreError or lose their worker are
    submitted again later, so `function` must be idempotent. LeaseErrors and exceptions of different types become the
    item's result, and so does a WorkerError once several workers in a row died without progress. If all tasks wait and
    `should_stop(seconds to wait)` returns True, the rest is skipped.

    max_in_flight: maximum number of submitted tasks.
    progress_of: progress of an interrupted item, such as its number of stored parts.
    on_this_node: run all tasks on the driver's node, for tasks that share local files.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(_on_one_thread(function))
    if on_this_node:  # the driver may run on a cluster's head, where Ray has no CPUs
        remote = remote.options(num_cpus=0, scheduling_strategy=this_node())
    else:
        remote = remote.options(label_selector=ON_TRAIN_NODES if num_gpus else ON_FETCH_NODES)
    shared_ref = ray.put(shared)  # sent once, not with each task
    # Use a generator, so that two million segments are never planned at once.
    fresh = (_Task(0.0, order, item) for order, item in enumerate(items))
    waiting: list[_Task[Item]] = []  # a heap by due time
    running: dict[ray.ObjectRef, _Task[Item]] = {}
    warned_until_s = 0.0
    while True:
        while len(running) < max_in_flight:
            # Due retries come first; fresh tasks fill the window while retries wait, perhaps on another node.
            is_due = waiting and waiting[0].due_s <= time.monotonic()
            task = heapq.heappop(waiting) if is_due else next(fresh, None)
            if task is None:
                break
            running[remote.remote(task.item, shared_ref)] = task
        show_tasks(getattr(function, "__name__", "task"), len(running), len(waiting))
        if not running and not waiting:
            return
        wait_s = max(0.0, waiting[0].due_s - time.monotonic()) if waiting else None
        if not running and wait_s is not None:
            if should_stop(wait_s):
                return
            time.sleep(min(wait_s, POLL_S))
            continue
        # With a full window nothing can be submitted, so wait for results only.
        timeout_s = wait_s if len(running) < max_in_flight else None
        for ref in ray.wait(list(running), num_returns=1, timeout=timeout_s)[0]:
            task, result = running.pop(ref), _result_of(ref)
            pause_s = task.pause_after(result, progress_of)
            if pause_s is None:
                yield task.item, _worker_error(result) if isinstance(result, DEATHS) else result
                continue
            task.due_s = time.monotonic() + pause_s
            heapq.heappush(waiting, task)
            if isinstance(result, StoreError) and time.monotonic() > warned_until_s:
                warned_until_s = task.due_s  # other running tasks are about to fail in the same way
                log.warning("retrying in %.0f s: %s", pause_s, result)


def _worker_error(death: Exception) -> WorkerError:
    is_memory = isinstance(death, OutOfMemoryError)
    cause = "Ray killed the last one for lack of memory" if is_memory else f"the last error: {describe(death)}"
    advice = "use machines with more memory per CPU, or fewer tasks" if is_memory else "see Ray's logs"
    return WorkerError(f"{MAX_DEATHS} workers in a row died without progress; {cause}; {advice}")


def _on_one_thread(function: Callable[[Item, Shared], Result]) -> Callable[[Item, Shared], Result]:
    """Limit NumPy to one thread while a task runs.

    By default BLAS starts a thread per core, and idle threads spin, so concurrent tasks would slow each other down.
    """

    @wraps(function)
    def run(item: Item, shared: Shared) -> Result:
        with threadpool_limits(1, user_api="blas"):
            return function(item, shared)

    return run


def _result_of(ref: ray.ObjectRef) -> Any:
    """Return a task's result or the exception that it raised, or else Ray's error."""
    try:
        return ray.get(ref)
    except RayError as error:
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, Exception) else error
