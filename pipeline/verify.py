"""Check shards against what the snapshot knows of them: quickly by size, or to the last byte by digest."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.errors import CorruptError, StoreError
from pipeline.shards import Seal, seal_of
from pipeline.snapshot import Snapshot
from pipeline.storage import Store

NUM_NAMED = 5
"""Bad shards that a message names."""
REMEDY = "restore it from where it was copied from, or remove it with its .parquet and preprocess again"


def check_tar(tar: Path, seal: Seal, name: str) -> None:
    """Raise CorruptError, naming the shard, unless a local tar is byte for byte the one that was sealed."""
    if not tar.exists():
        raise CorruptError(_wrong_size(name, seal.num_bytes, None))
    found = seal_of(tar)
    if found.num_bytes != seal.num_bytes:
        raise CorruptError(_wrong_size(name, seal.num_bytes, found.num_bytes))
    if found != seal:
        raise CorruptError(
            f"{name} has the digest {found.digest[:16]}, expected {seal.digest[:16]}: it was changed, or is another"
            f" shard under this name; {REMEDY}"
        )


def _wrong_size(name: str, expected: int, found: int | None) -> str:
    if found is None:
        return f"{name} is missing; {REMEDY}"
    what = "it breaks off" if found < expected else "it is another file"
    return f"{name} has {found} bytes, expected {expected}: {what}; {REMEDY}"


def check_sizes(snapshot: Snapshot) -> None:
    """Raise CorruptError, naming them, if shards of a snapshot are missing or have another size; one listing."""
    store = snapshot.store
    found = store.sizes("shards", ".tar")
    wrong = [
        _wrong_size(store.url(name), seal.num_bytes, found.get(name))
        for name, seal in snapshot.seals.items()
        if found.get(name) != seal.num_bytes
    ]
    if wrong:
        raise CorruptError(_sum_up(wrong, snapshot))


def check_shards(snapshot: Snapshot, num_threads: int) -> None:
    """Read all shards of a snapshot. Raises CorruptError, naming them, if some aren't what was sealed."""
    with ThreadPoolExecutor(num_threads) as pool:
        errors = pool.map(lambda item: _error_of(snapshot.store, *item), snapshot.seals.items())
        wrong = [error for error in errors if error]
    if wrong:
        raise CorruptError(_sum_up(wrong, snapshot))


def _sum_up(wrong: list[str], snapshot: Snapshot) -> str:
    more = f" … and {len(wrong) - NUM_NAMED} more" if len(wrong) > NUM_NAMED else ""
    return (
        f"{len(wrong)} of {len(snapshot.seals)} shards of snapshot {snapshot.snapshot_id} are not as indexed: "
        + "; ".join(wrong[:NUM_NAMED])
        + more
    )


def _error_of(store: Store, name: str, seal: Seal) -> str | None:
    try:
        if store.is_local:
            check_tar(Path(store.path(name)), seal, name)
        else:
            with store.scratch() as folder:
                store.fetch(name, folder / "shard.tar")
                check_tar(folder / "shard.tar", seal, store.url(name))
    except StoreError as error:
        return str(error)
    return None
