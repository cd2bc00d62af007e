"""Compare the sizes of a store's tars with a snapshot, without reading them."""

from pipeline.errors import CorruptError
from pipeline.shards.checksum import describe_wrong_size, remedy
from pipeline.snapshots.snapshot import Snapshot

NUM_NAMED = 5
"""Maximum bad shards named in a message."""


def verify_sizes(snapshot: Snapshot) -> None:
    """Raise CorruptError, with the shards' names, for missing shards and wrong sizes. Needs one listing."""
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
            f"{len(wrong)} of {len(snapshot.checksums)} shards of snapshot {snapshot.snapshot_id} differ from the"
            f" index: {'; '.join(wrong[:NUM_NAMED])}{more}; {remedy(store)}"
        )
