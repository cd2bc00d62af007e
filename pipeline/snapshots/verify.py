"""Compare the tars of a store with a snapshot, by size, before any of them is read."""

from pipeline.errors import CorruptError
from pipeline.shards.checksum import describe_wrong_size, remedy
from pipeline.snapshots.snapshot import Snapshot

NUM_NAMED = 5
"""Bad shards that a message names."""


def verify_sizes(snapshot: Snapshot) -> None:
    """Raise CorruptError, naming them, if shards of a snapshot are missing or have another size; one listing."""
    store = snapshot.store
    found = store.sizes("shards", ".tar")
    wrong = [
        describe_wrong_size(store.url(name), checksum.num_bytes, found.get(name))
        for name, checksum in snapshot.checksums.items()
        if found.get(name) != checksum.num_bytes
    ]
    if wrong:
        more = f" … and {len(wrong) - NUM_NAMED} more" if len(wrong) > NUM_NAMED else ""
        raise CorruptError(
            f"{len(wrong)} of {len(snapshot.checksums)} shards of snapshot {snapshot.snapshot_id} are not as indexed: "
            f"{'; '.join(wrong[:NUM_NAMED])}{more}; {remedy(store)}"
        )
