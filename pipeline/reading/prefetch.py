"""Prefetch the shards of a remote store to a node, in the order in which they will be used."""

import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import CorruptError, StoreError
from pipeline.reading.cache import ShardCache

log = logging.getLogger(__name__)
SHARE_AHEAD = 0.5
"""Share of the cache that prefetched shards may occupy. The rest is for shards that are in use."""


class ShardPrefetcher:
    """Fills a cache from background threads. It is thread-safe.

    If a shard is being fetched, its readers wait. If a shard was evicted or is not in the order, its clips are read
    from the store.
    """

    def __init__(self, cache: ShardCache, num_threads: int):
        cache.check()
        self.cache = cache
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._lock = threading.Lock()
        self._fetching: dict[str, Future[Path]] = {}
        self._order: Sequence[str] = ()
        self._is_paced = False
        self._num_submitted = self._reached = 0
        self._has_warned = False

    def set_order(self, order: Sequence[str], is_paced: bool) -> None:
        """Fetch shards in this order from now on, instead of the previous order.

        is_paced: fetch each shard when `advance_to` comes close to it. In this mode, the order may contain a shard
        several times. Otherwise, start fetching as many shards as the cache can hold.
        """
        with self._lock:
            for future in self._fetching.values():
                future.cancel()
            self._fetching.clear()
            self._order, self._is_paced, self._num_submitted, self._reached = order, is_paced, 0, 0
            self._submit()

    def advance_to(self, names: Iterable[str]) -> None:
        """Record that these shards are read next. Successive calls must follow the order."""
        with self._lock:
            if self._is_paced:
                for name in names:
                    self._reached = self._order.index(name, self._reached)
                self._submit()

    def find(self, name: str) -> Path | None:
        """Return the path of a cached shard, after waiting for a fetch in progress. None means: read from the store."""
        if found := self.cache.find(name):
            return found
        with self._lock:
            coming = self._fetching.get(name)
        if coming is None:
            return None
        try:
            return coming.result()
        except CorruptError:
            raise
        except CancelledError:  # a new order has replaced the old order
            return None
        except StoreError as error:
            if not self._has_warned:
                self._has_warned = True
                log.warning("reading from the store without the cache, which is slower: %s", error)
            return None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self) -> None:
        """Submit as many fetches as fit into the part of the cache that is reserved for prefetching."""
        room = self.cache.max_bytes * (SHARE_AHEAD if self._is_paced else 1)
        ahead = sum(self._size(name) for name in self._order[self._reached : self._num_submitted])
        while self._num_submitted < len(self._order):
            name = self._order[self._num_submitted]
            ahead += self._size(name)
            if ahead > room and self._num_submitted > self._reached:
                return
            self._fetching[name] = self._pool.submit(self.cache.fetch, name)
            self._num_submitted += 1

    def _size(self, name: str) -> int:
        return self.cache.checksums[name].num_bytes
