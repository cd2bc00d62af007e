"""Remove files that killed runs left behind. Only the run that holds the lease does this."""

from contextlib import suppress

from pipeline.errors import StoreError
from pipeline.store.layout import MEASURES, SHARDS, SIDECAR, SNAPSHOTS, TAR, Shard, SnapshotFiles, name_in
from pipeline.store.scratch import ABANDONED_S
from pipeline.store.storage import Store


def remove_orphaned_files(store: Store) -> None:
    """Remove the scratch folders of dead processes, and unfinished files that have not been written for a day.

    Unfinished files are S3 uploads, tars and measures without a sidecar, and snapshots without a manifest. Files that
    can't be removed are ignored.
    """
    with suppress(StoreError):
        store.remove_orphaned_files()
        for name in [*orphaned_tars(store), *_orphaned_measures(store), *_files_of_unfinished_snapshots(store)]:
            if store.age_s(name) > ABANDONED_S:
                store.remove(name)


def orphaned_tars(store: Store) -> list[str]:
    """List tars without a sidecar. They were left by runs that were killed before they published the sidecar."""
    done = {Shard.of(name) for name in store.list(SHARDS, SIDECAR)}
    return [name for name in store.list(SHARDS, TAR) if Shard.of(name) not in done]


def _orphaned_measures(store: Store) -> list[str]:
    expected = {Shard.of(name).measures for name in store.list(SHARDS, SIDECAR)}
    return [name for name in store.list(MEASURES) if name not in expected]


def _files_of_unfinished_snapshots(store: Store) -> list[str]:
    names = set(store.list(SNAPSHOTS))
    return sorted(name for name in names if SnapshotFiles(name_in(SNAPSHOTS, name)).manifest not in names)
