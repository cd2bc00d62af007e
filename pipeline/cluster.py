"""Ray: start or join it, and run independent tasks in a bounded window."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import ray

Item = TypeVar("Item")
Shared = TypeVar("Shared")
Result = TypeVar("Result")

LOCAL_OBJECT_STORE_BYTES = 200 * 2**20
"""Only plans, paths and reports travel through it."""
NUM_TASK_RETRIES = 3
"""Repetitions of a task whose worker or node died."""


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Join the Ray that `RAY_ADDRESS` names, which Ray Jobs sets, or start one of our own and end it."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=True,
        )
    try:
        yield
    finally:
        ray.shutdown()


def run_tasks(
    function: Callable[[Item, Shared], Result], items: Iterable[Item], shared: Shared, *, max_in_flight: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Run `function(item, shared)` for each item on the cluster and yield items and results as they finish.

    At most `max_in_flight` are handed out at a time, each on one CPU. A task whose worker died is repeated, so it
    must be idempotent. One that fails yields its exception.
    """
    task = ray.remote(num_cpus=1, max_retries=NUM_TASK_RETRIES)(function)
    shared_ref = ray.put(shared)
    waiting = iter(items)
    running: dict[ray.ObjectRef, Item] = {}
    while True:
        for item in islice(waiting, max_in_flight - len(running)):
            running[task.remote(item, shared_ref)] = item
        if not running:
            return
        for ref in ray.wait(list(running), num_returns=1)[0]:
            item = running.pop(ref)
            try:
                yield item, ray.get(ref)
            except ray.exceptions.RayError as error:
                yield item, _cause(error)


def _cause(error: ray.exceptions.RayError) -> Exception:
    """Return what the task itself raised, where it is known."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else error
