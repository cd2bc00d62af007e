"""What killed runs left in a store. Who holds the lease clears it, and never what a live process may still need."""

from contextlib import suppress

from pipeline.errors import StoreError
from pipeline.shards.verify import TAR, orphans
from pipeline.store.scratch import ABANDONED_S
from pipeline.store.storage import Store


def remove_orphaned_files(store: Store) -> None:
    """Remove scratch folders of dead processes, and what waits for a day to be finished.

    That are uploads to S3, tars without a sidecar, snapshots without a manifest. What can't be removed stays.
    """
    with suppress(StoreError):
        store.remove_orphaned_files()
        for name in [*(shard + TAR for shard in orphans(store)), *_files_of_unfinished_snapshots(store)]:
            if store.age_s(name) > ABANDONED_S:
                store.remove(name)


def _files_of_unfinished_snapshots(store: Store) -> list[str]:
    names = store.list("snapshots")
    complete = {name.rpartition("/")[0] for name in names if name.endswith("/manifest.json")}
    return [name for name in names if name.rpartition("/")[0] not in complete]
