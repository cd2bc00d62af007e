"""Run independent, idempotent Ray tasks, with a bounded number of them in flight."""

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
"""Errors that Ray raises if the worker, the node or the result of a task is lost."""
MAX_DEATHS = 4
"""A task fails after this many of its workers in a row have died without making progress."""
DEATH_PAUSE_S = 1.0
MAX_STORE_ERRORS = 3
"""Maximum number of attempts at a task that raises StoreErrors. The last error becomes the result."""
STORE_PAUSE_S = 5.0
"""Seconds to wait before the first retry after a StoreError. The pause doubles with each further retry."""
MAX_STORE_PAUSE_S = 60.0
TASKS_PER_PROCESSOR = 2
"""Number of tasks to submit per processor, so that no processor has to wait for the driver."""
POLL_S = 10.0
"""While all tasks are waiting, seconds between two checks whether the run should stop."""


@dataclass(order=True)
class _Task(Generic[Item]):
    """An item that has been submitted, or that is waiting to be submitted again."""

    due_s: float
    order: int
    """Breaks ties between tasks that are due at the same time."""
    item: Item = field(compare=False)
    num_refusals: int = field(default=0, compare=False)
    """Number of StoreErrors so far."""
    num_deaths: int = field(default=0, compare=False)
    """Number of workers that have died since the task last made progress."""
    progress: int = field(default=0, compare=False)
    """The progress when a worker last died."""
    pauses: Iterator[float] = field(
        default_factory=lambda: backoff(STORE_PAUSE_S, MAX_STORE_PAUSE_S), compare=False, repr=False
    )

    def pause_after(self, result: object, progress_of: Callable[[Item], int]) -> float | None:
        """Return the number of seconds until the next attempt, or None if this result is final."""
        if isinstance(result, Wait):
            return result.seconds
        if isinstance(result, DEATHS):
            progress = progress_of(self.item)
            # Spot machines may interrupt a long task many times. Only tasks that make no progress fail.
            self.num_deaths = 1 if progress > self.progress else self.num_deaths + 1
            self.progress = progress
            is_memory = isinstance(result, OutOfMemoryError)  # wait until other tasks have freed memory
            return None if self.num_deaths == MAX_DEATHS else next(self.pauses) if is_memory else DEATH_PAUSE_S
        # Object stores fail occasionally. The limit ends tasks whose results can never be stored.
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
    """Run `function(item, shared)` for each item on the cluster. Yields items and their results as they finish.

    Each task uses one CPU and `num_gpus` GPUs. If a task returns a Wait, raises StoreError or loses its worker, it is
    submitted again later, so `function` must be idempotent. A LeaseError or an exception of another type becomes the
    result of the item. If several workers in a row die without progress, a WorkerError becomes the result. If all tasks
    are waiting and `should_stop(seconds to wait)` returns True, the remaining items are skipped.

    Neither Ray Data nor ray.util.multiprocessing offers all of this: lazy submission, a pause for a single item that
    does not block a slot, and exceptions that end one item instead of the whole run.

    max_in_flight: maximum number of submitted tasks.
    progress_of: returns the progress of an interrupted item, such as its number of stored parts.
    on_this_node: run all tasks on the driver's node, because they share local files.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(_on_one_thread(function))
    if on_this_node:  # the driver may be on the head of a cluster, where Ray has no CPUs
        remote = remote.options(num_cpus=0, scheduling_strategy=this_node())
    else:
        remote = remote.options(label_selector=ON_TRAIN_NODES if num_gpus else ON_FETCH_NODES)
    shared_ref = ray.put(shared)  # send it once instead of with each task
    # Use a generator, so that two million segments are never planned at once.
    fresh = (_Task(0.0, order, item) for order, item in enumerate(items))
    waiting: list[_Task[Item]] = []  # a heap, ordered by due time
    running: dict[ray.ObjectRef, _Task[Item]] = {}
    warned_until_s = 0.0
    while True:
        while len(running) < max_in_flight:
            # Retries that are due come first. While other retries wait, new tasks fill the window, perhaps on other
            # nodes.
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
        # If the window is full, nothing can be submitted, so only wait for results.
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
                warned_until_s = task.due_s  # other running tasks will probably fail in the same way
                log.warning("retrying in %.0f s: %s", pause_s, result)


def _worker_error(death: Exception) -> WorkerError:
    is_memory = isinstance(death, OutOfMemoryError)
    cause = "Ray killed the last worker because memory ran out" if is_memory else f"the last error: {describe(death)}"
    advice = "use machines with more memory per CPU, or run fewer tasks" if is_memory else "see Ray's logs"
    return WorkerError(f"{MAX_DEATHS} workers in a row died without progress; {cause}; {advice}")


def _on_one_thread(function: Callable[[Item, Shared], Result]) -> Callable[[Item, Shared], Result]:
    """Limit NumPy to one thread while a task runs.

    By default, BLAS starts one thread per core. Idle threads spin, so concurrent tasks would slow each other down.
    """

    @wraps(function)
    def run(item: Item, shared: Shared) -> Result:
        with threadpool_limits(1, user_api="blas"):
            return function(item, shared)

    return run


def _result_of(ref: ray.ObjectRef) -> Any:
    """Return the result of a task, the exception that it raised, or Ray's own error if the task raised none."""
    try:
        return ray.get(ref)
    except RayError as error:
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, Exception) else error
