"""Results computed ahead by threads."""

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
    """Yield `function(item)` for each item, in order; memory holds a bounded number of results.

    The items are drawn in the caller's thread. `initializer` is called first in each thread of the pool.
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
