"""Remove leftovers of killed runs. Only the run with the lease does so, once no live process needs them."""

from contextlib import suppress

from pipeline.errors import StoreError
from pipeline.shards.format import SIDECAR, TAR, quality_name
from pipeline.store.scratch import ABANDONED_S
from pipeline.store.storage import Store


def remove_orphaned_files(store: Store) -> None:
    """Remove the scratch folders of dead processes, and unfinished files that were not written for a day.

    Unfinished files are S3 uploads, tars and measures without a sidecar, and snapshots without a manifest. Files that
    can't be removed are ignored.
    """
    with suppress(StoreError):
        store.remove_orphaned_files()
        for name in [*orphaned_tars(store), *_orphaned_measures(store), *_files_of_unfinished_snapshots(store)]:
            if store.age_s(name) > ABANDONED_S:
                store.remove(name)


def orphaned_tars(store: Store) -> list[str]:
    """List tars without a sidecar. They come from runs that were killed before publishing it."""
    done = {name.removesuffix(SIDECAR) for name in store.list("shards", SIDECAR)}
    return [name for name in store.list("shards", TAR) if name.removesuffix(TAR) not in done]


def _orphaned_measures(store: Store) -> list[str]:
    expected = {quality_name(name.removesuffix(SIDECAR)) for name in store.list("shards", SIDECAR)}
    return [name for name in store.list("quality") if name not in expected]


def _files_of_unfinished_snapshots(store: Store) -> list[str]:
    names = store.list("snapshots")
    # Use only the first folder, because snapshots have subfolders, for example for selections.
    complete = {name.split("/")[1] for name in names if name.endswith("/manifest.json")}
    return [name for name in names if name.split("/")[1] not in complete]
