"""Compute results ahead of their use, in threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD_PER_THREAD = 2
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int,
    initializer: Callable[[], object] | None = None,
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item in order, and keep a bounded number of results in memory.

    The items are iterated in the caller's thread. Each thread of the pool calls `initializer` first.
    """
    with ThreadPoolExecutor(num_threads, initializer=initializer) as pool:
        window: deque[Future[Result]] = deque()
        try:
            for item in items:
                window.append(pool.submit(function, item))
                if len(window) > num_threads * AHEAD_PER_THREAD:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            for future in window:
                future.cancel()
