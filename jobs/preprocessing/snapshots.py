"""The commands `snapshots list`, `diff` and `prune`."""

from ast_model.tracking.lineage import snapshots_in_use
from jobs.command_line.cli import resolve_root
from jobs.preprocessing.settings import DiffSnapshots, ListSnapshots, PruneSnapshots
from pipeline.errors import ConfigError
from pipeline.snapshots.history import count_changes, diff_snapshots, list_snapshots, prune_snapshots
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store


def print_snapshots(command: ListSnapshots) -> None:
    for entry in list_snapshots(Store(resolve_root(command.root))):
        clips = ", ".join(f"{count} {split}" for split, count in entry.num_clips.items())
        runs = f"; runs {', '.join(entry.runs)}" if entry.runs else ""
        print(f"{entry.snapshot_id}  {clips}{'  (latest)' if entry.is_latest else ''}{runs}")


def print_difference(command: DiffSnapshots) -> None:
    if not command.old:
        raise ConfigError("expected --old SNAPSHOT to compare from, found none; `snapshots list` shows all snapshots")
    store = Store(resolve_root(command.root))
    old, new = load_snapshot(store, command.old), load_snapshot(store, command.new or None)
    if changes := count_changes(old, new):
        print(f"{old.snapshot_id} → {new.snapshot_id}: {changes}")
    else:
        print(f"{old.snapshot_id} and {new.snapshot_id} contain the same clips")
    if len(table := diff_snapshots(old, new)):
        print(f"\n{table.to_string(index=False)}")


def remove_snapshots(command: PruneSnapshots) -> None:
    store = Store(resolve_root(command.root))
    in_use = snapshots_in_use(store) if command.track else set()
    removed = prune_snapshots(store, command.keep, in_use, dry_run=command.dry_run)
    print(f"{'would remove' if command.dry_run else 'removed'} {', '.join(removed) or 'none'}")
