"""Files that killed runs left in a store. Removed by the run that holds the store, once no live process needs them."""

from contextlib import suppress

from pipeline.errors import StoreError
from pipeline.shards.format import SIDECAR, TAR, quality_name
from pipeline.store.scratch import ABANDONED_S
from pipeline.store.storage import Store


def remove_orphaned_files(store: Store) -> None:
    """Remove scratch folders of dead processes, and what has waited for a day to be finished.

    These are uploads to S3, tars and measures without a sidecar, snapshots without a manifest. What can't be removed
    stays.
    """
    with suppress(StoreError):
        store.remove_orphaned_files()
        for name in [*orphaned_tars(store), *_orphaned_measures(store), *_files_of_unfinished_snapshots(store)]:
            if store.age_s(name) > ABANDONED_S:
                store.remove(name)


def orphaned_tars(store: Store) -> list[str]:
    """List tars without a sidecar, left by runs that were killed between the two."""
    done = {name.removesuffix(SIDECAR) for name in store.list("shards", SIDECAR)}
    return [name for name in store.list("shards", TAR) if name.removesuffix(TAR) not in done]


def _orphaned_measures(store: Store) -> list[str]:
    expected = {quality_name(name.removesuffix(SIDECAR)) for name in store.list("shards", SIDECAR)}
    return [name for name in store.list("quality") if name not in expected]


def _files_of_unfinished_snapshots(store: Store) -> list[str]:
    names = store.list("snapshots")
    # A snapshot's folder may have folders, such as that of its selections.
    complete = {name.split("/")[1] for name in names if name.endswith("/manifest.json")}
    return [name for name in names if name.split("/")[1] not in complete]
