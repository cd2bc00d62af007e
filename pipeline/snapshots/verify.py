"""Compare tars with what a snapshot knows of them: all by size before they are read, one by digest once it is near."""

from pipeline.errors import CorruptError
from pipeline.shards.format import Checksum
from pipeline.snapshots.snapshot import Snapshot

NUM_NAMED = 5
"""Bad shards that a message names."""
REMEDY = "restore it, or let jobs/preprocess.py verify --repair True make it anew"


def verify_checksum(found: Checksum, expected: Checksum, name: str) -> None:
    """Raise CorruptError, naming the shard, unless a tar is byte for byte the one that was sealed."""
    if found.num_bytes != expected.num_bytes:
        raise CorruptError(_wrong_size(name, expected.num_bytes, found.num_bytes))
    if found != expected:
        raise CorruptError(
            f"{name} has the digest {found.digest[:16]}, expected {expected.digest[:16]}: it was changed, or is another"
            f" shard under this name; {REMEDY}"
        )


def _wrong_size(name: str, expected: int, found: int | None) -> str:
    if found is None:
        return f"{name} is missing; {REMEDY}"
    what = "it breaks off" if found < expected else "it is another file"
    return f"{name} has {found} bytes, expected {expected}: {what}; {REMEDY}"


def verify_sizes(snapshot: Snapshot) -> None:
    """Raise CorruptError, naming them, if shards of a snapshot are missing or have another size; one listing."""
    store = snapshot.store
    found = store.sizes("shards", ".tar")
    wrong = [
        _wrong_size(store.url(name), checksum.num_bytes, found.get(name))
        for name, checksum in snapshot.checksums.items()
        if found.get(name) != checksum.num_bytes
    ]
    if wrong:
        raise CorruptError(_sum_up(wrong, snapshot))


def _sum_up(wrong: list[str], snapshot: Snapshot) -> str:
    more = f" … and {len(wrong) - NUM_NAMED} more" if len(wrong) > NUM_NAMED else ""
    return (
        f"{len(wrong)} of {len(snapshot.checksums)} shards of snapshot {snapshot.snapshot_id} are not as indexed: "
        + "; ".join(wrong[:NUM_NAMED])
        + more
    )
