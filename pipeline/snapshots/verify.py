"""Check that the sizes of tars match a snapshot, without reading the tars."""

from pipeline.errors import CorruptError
from pipeline.shards.checksum import describe_wrong_size, remedy
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import SHARDS, TAR

NUM_NAMED = 5
"""Maximum number of bad shards that a message names."""


def verify_sizes(snapshot: Snapshot) -> None:
    """Raise CorruptError, which names the shards, if shards are missing or have the wrong size. Lists the store only
    once."""
    store = snapshot.store
    found = store.sizes(SHARDS, TAR)
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
