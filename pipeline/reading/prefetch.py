"""Shards of a remote store brought to the node before they are read, in the order in which they will be."""

import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import CorruptError, StoreError
from pipeline.reading.cache import ShardCache

log = logging.getLogger(__name__)
SHARE_AHEAD = 0.5
"""Part of the cache that may be filled with what was not read yet; the rest holds what is being read."""


class ShardPrefetcher:
    """Fills a cache by threads. Safe to use from several threads.

    A shard that is coming is waited for. One that is not in the order, or was evicted, is not brought: its clips are
    read from the store.
    """

    def __init__(self, cache: ShardCache, num_threads: int):
        cache.check()
        self.cache = cache
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._coming: dict[str, Future[Path]] = {}
        self._order: Sequence[str] = ()
        self._is_paced = False
        self._num_asked = self._reached = 0
        self._is_degraded = False

    def set_order(self, order: Sequence[str], is_paced: bool) -> None:
        """Fetch shards in this order from now on, in place of an earlier one.

        Paced, each as `advance_to` comes near it, and one may come again; else all at once, as many as the cache holds.
        """
        with self._lock:
            for future in self._coming.values():
                future.cancel()
            self._coming.clear()
            self._order, self._is_paced, self._num_asked, self._reached = order, is_paced, 0, 0
            self._ask()

    def advance_to(self, names: Iterable[str]) -> None:
        """Note that shards are read next: some of the order, as they stand there."""
        with self._lock:
            if self._is_paced:
                for name in names:
                    self._reached = self._order.index(name, self._reached)
                self._ask()

    def find(self, name: str) -> Path | None:
        """Return where a shard lies, waiting for it if it is coming; None if it has to be read from the store."""
        if found := self.cache.find(name):
            return found
        with self._lock:
            coming = self._coming.get(name)
        if coming is None:
            return None
        try:
            return coming.result()
        except CorruptError:
            raise
        except CancelledError:  # another order was set meanwhile
            return None
        except StoreError as error:
            if not self._is_degraded:
                self._is_degraded = True
                log.warning("reading from the store without the cache, which is slower: %s", error)
            return None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self) -> None:
        """Hand out what fits into the cache beside what is being read."""
        room = self.cache.max_bytes * (SHARE_AHEAD if self._is_paced else 1)
        ahead = sum(self._size(name) for name in self._order[self._reached : self._num_asked])
        while self._num_asked < len(self._order):
            name = self._order[self._num_asked]
            ahead += self._size(name)
            if ahead > room and self._num_asked > self._reached:
                return
            self._coming[name] = self._pool.submit(self.cache.fetch, name)
            self._num_asked += 1

    def _size(self, name: str) -> int:
        return self.cache.checksums[name].num_bytes
