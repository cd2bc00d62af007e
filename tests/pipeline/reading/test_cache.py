import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, CorruptError, StoreError
from pipeline.reading.cache import ShardCache
from pipeline.shards.checksum import Checksum, checksum_of
from pipeline.store.storage import Store

SHARD_BYTES = 100_000
NAMES = ("shards/train/0.tar", "shards/eval/0.tar", "shards/eval/1.tar", "shards/eval/2.tar")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "store"))
    for name in NAMES:
        store.write_bytes(name, os.urandom(SHARD_BYTES))
    return store


def make_cache(store: Store, num_shards: float) -> ShardCache:
    checksums = {name: checksum_of(Path(store.path(name))) for name in NAMES}
    cache = ShardCache(Path(store.root).parent / "cache", int(num_shards * SHARD_BYTES), store, checksums)
    cache.check()
    return cache


def held(cache: ShardCache) -> set[str]:
    return {name for name in NAMES if (cache.folder / f"{cache.checksums[name].digest}.tar").exists()}


def test_least_recently_used_shard_is_evicted_first(store: Store) -> None:
    cache = make_cache(store, num_shards=3.5)
    for age, name in enumerate(NAMES[:3]):
        os.utime(cache.fetch(name), (age, age))
    assert cache.find(NAMES[0])  # a use
    cache.fetch(NAMES[3])
    assert held(cache) == {NAMES[0], NAMES[2], NAMES[3]}
    for name in held(cache):
        assert cache.fetch(name).read_bytes() == store.read_bytes(name)


def test_readers_sharing_a_folder_fetch_a_shard_once_and_respect_the_limit(store: Store) -> None:
    caches = [make_cache(store, num_shards=4) for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda cache: cache.fetch(NAMES[0]).stat(), caches * 4))
    assert len({file.st_ino for file in files}) == 1

    small = make_cache(store, num_shards=2)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(small.fetch, NAMES * 5))
    assert 1 <= len(held(small)) <= 2


def test_cache_never_exceeds_its_limit(store: Store) -> None:
    cache = make_cache(store, num_shards=2)

    def fetch(name: str) -> int:
        cache.fetch(name)
        with cache._lock("room"):
            return sum(size for _, size, _ in cache._held(besides=cache.folder))

    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(fetch, NAMES * 50)) <= cache.max_bytes


def test_leftovers_of_a_killed_reader_are_never_read(store: Store) -> None:
    cache = make_cache(store, num_shards=2)
    part = cache.folder / f"{cache.checksums[NAMES[0]].digest}.part"
    part.write_bytes(b"half")
    assert cache.find(NAMES[0]) is None
    assert cache.fetch(NAMES[0]).read_bytes() == store.read_bytes(NAMES[0])
    assert not part.exists()


@pytest.mark.parametrize("damage", ["cut", "edited", "swapped"])
def test_shard_that_differs_from_the_index_is_rejected_and_not_cached(store: Store, damage: str) -> None:
    cache = make_cache(store, num_shards=2)
    file = Path(store.path(NAMES[0]))
    content = file.read_bytes()
    changed = {"cut": content[:-512], "edited": content[:-1] + b"!", "swapped": store.read_bytes(NAMES[1])}[damage]
    file.write_bytes(changed)
    expected = {"cut": "99488 bytes, expected 100000: it is truncated"}.get(damage, "was changed or replaced")
    with pytest.raises(CorruptError, match=f"train/0.tar.*{expected}"):
        cache.fetch(NAMES[0])
    assert not held(cache)
    assert not list(cache.folder.glob("*.part"))


@contextmanager
def full_disk() -> Iterator[None]:
    """Limit the size of files, so that large writes fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_unusable_folder_is_reported_before_reading(store: Store, tmp_path: Path) -> None:
    with full_disk(), pytest.raises(ConfigError, match=r"can't write to the cache folder .*cache.folder"):
        make_cache(store, num_shards=2)
    (tmp_path / "file").touch()
    cache = ShardCache(tmp_path / "file" / "cache", SHARD_BYTES, store, {NAMES[0]: Checksum(SHARD_BYTES, "")})
    with pytest.raises(ConfigError, match="can't write to the cache folder"):
        cache.check()
    with pytest.raises(ConfigError, match="is limited to 50000 bytes, but the largest shard has 100000"):
        make_cache(store, num_shards=0.5)


def test_disk_that_fills_up_later_raises_a_store_error(store: Store) -> None:
    cache = make_cache(store, num_shards=2)
    with full_disk(), pytest.raises(StoreError, match=r"can't store shards/train/0\.tar in the cache folder"):
        cache.fetch(NAMES[0])
    assert cache.find(NAMES[0]) is None
    assert cache.fetch(NAMES[0]).stat().st_size == SHARD_BYTES


def test_many_shards_can_be_fetched_concurrently(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    names = [f"shards/train/{number}.tar" for number in range(150)]
    for name in names:
        store.write_bytes(name, name.encode())
    checksums = {name: checksum_of(Path(store.path(name))) for name in names}
    cache = ShardCache(tmp_path / "cache", 10**6, store, checksums)
    cache.check()
    with ThreadPoolExecutor(8) as pool:
        assert [file.read_bytes().decode() for file in pool.map(cache.fetch, names)] == names
