"""List and compare the snapshots of a store, and remove unused snapshots."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import NoClipsError
from pipeline.keys import positions_of
from pipeline.snapshots.manifest import read_manifest
from pipeline.snapshots.snapshot import Snapshot, latest_snapshot_id
from pipeline.store.layout import MANIFEST, RUNS, SNAPSHOTS, SnapshotFiles, name_in
from pipeline.store.storage import Store


@dataclass(frozen=True)
class SnapshotEntry:
    """A snapshot, as shown in the list of snapshots."""

    snapshot_id: str
    num_clips: dict[str, int]
    split_counts: dict[str, Any]
    is_latest: bool
    runs: tuple[str, ...]
    """The training runs in the store that use this snapshot."""


def list_snapshots(store: Store) -> list[SnapshotEntry]:
    """List all complete snapshots, ordered by size, with the latest snapshot last."""
    names = store.list(SNAPSHOTS, f"/{MANIFEST}")
    latest = latest_snapshot_id(store)
    runs = runs_by_snapshot(store)
    entries = []
    for name in names:
        snapshot_id = name_in(SNAPSHOTS, name)
        num_clips = store.read_json(SnapshotFiles(snapshot_id).stats)["num_clips"]
        split_counts = read_manifest(store, name)["split_counts"]
        used_by = tuple(sorted(runs.get(snapshot_id, ())))
        entries.append(SnapshotEntry(snapshot_id, num_clips, split_counts, snapshot_id == latest, used_by))
    return sorted(entries, key=lambda entry: (entry.is_latest, sum(entry.num_clips.values()), entry.snapshot_id))


def runs_by_snapshot(store: Store) -> dict[str, set[str]]:
    """Return the runs that use each snapshot, according to the JSON files in `runs/`."""
    found: dict[str, set[str]] = {}
    for name in store.list(RUNS, ".json"):
        # In the id of a selection, a hyphen follows the snapshot's id.
        for snapshot_id in re.findall(r'"snapshot(?:_id)?": ?"(\w+)[-\w]*"', json.dumps(store.read_json(name))):
            found.setdefault(snapshot_id, set()).add(name_in(RUNS, name))
    return found


@dataclass(frozen=True)
class Changes:
    """The numbers of clips that differ between two snapshots."""

    num_added: int = 0
    num_removed: int = 0
    num_relabelled: int = 0
    num_moved: int = 0
    """Number of clips that moved to another split."""
    num_replaced: int = 0
    """Number of clips that were fetched again because the end of their segment changed or their shard was repaired."""

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def __str__(self) -> str:
        parts = {
            "{} new": self.num_added,
            "{} relabelled": self.num_relabelled,
            "{} moved to another split": self.num_moved,
            "{} fetched again": self.num_replaced,
            "{} removed": self.num_removed,
        }
        return ", ".join(text.format(count) for text, count in parts.items() if count) or "nothing"


def count_changes(old: Snapshot, new: Snapshot) -> Changes:
    """Count the clips that were added, removed or changed between two snapshots."""
    rows = positions_of(new.index["key"], old.index["key"])
    kept = np.flatnonzero(rows >= 0)
    before, after = old.index.take(pa.array(rows[kept])), new.index.take(pa.array(kept))
    relabelled = _label_hashes(old, rows[kept]) != _label_hashes(new, kept)
    moved = pc.not_equal(before["split"].cast(pa.string()), after["split"].cast(pa.string()))
    replaced = pc.or_(
        pc.not_equal(before["shard"].cast(pa.string()), after["shard"].cast(pa.string())),
        pc.not_equal(before["offset"], after["offset"]),
    )
    return Changes(
        num_added=len(rows) - len(kept),
        num_removed=len(old.index) - len(kept),
        num_relabelled=int(relabelled.sum()),
        num_moved=pc.sum(moved).as_py() or 0,
        num_replaced=pc.sum(replaced).as_py() or 0,
    )


def _label_hashes(snapshot: Snapshot, rows: np.ndarray) -> np.ndarray:
    """Return a hash of each clip's labels (N,) that does not depend on the order of the classes."""
    digests = [hashlib.sha256(mid.encode()).digest() for mid in snapshot.labels.mids]
    return snapshot.targets(rows) @ np.array([int.from_bytes(digest[:8]) for digest in digests], np.uint64)


def diff_snapshots(old: Snapshot, new: Snapshot) -> pd.DataFrame:
    """Return a table with a row for each split and each class that changed. It counts clips in the columns before,
    came, went and after."""
    before, after = _clips_of_classes(old), _clips_of_classes(new)
    both = before.merge(after, how="outer", on=["split", "key", "mid"], indicator="where")
    counts = both.groupby(["split", "mid"], observed=True)["where"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=["left_only", "right_only", "both"], fill_value=0)
    table = pd.DataFrame(
        {
            "before": counts["left_only"] + counts["both"],
            "came": counts["right_only"],
            "went": counts["left_only"],
            "after": counts["right_only"] + counts["both"],
        }
    ).reset_index()
    names = dict(zip(old.labels.mids, old.labels.names, strict=True)) | dict(
        zip(new.labels.mids, new.labels.names, strict=True)
    )
    table.insert(2, "name", table["mid"].map(names))
    table = table[(table["came"] > 0) | (table["went"] > 0)]
    return table.sort_values(["split", "came", "went", "mid"], ascending=[True, False, False, True], ignore_index=True)


def _clips_of_classes(snapshot: Snapshot) -> pd.DataFrame:
    labels = snapshot.index["labels"].combine_chunks()
    rows = labels.value_parent_indices()
    mids = pd.Series(snapshot.labels.mids)
    return pd.DataFrame(
        {
            "split": snapshot.index["split"].cast("string").take(rows).to_pandas(),
            "key": snapshot.index["key"].take(rows).to_pandas(),
            "mid": mids.iloc[labels.flatten().to_numpy()].to_numpy(),
        }
    )


def prune_snapshots(store: Store, keep: Collection[str], in_use: Collection[str], *, dry_run: bool) -> list[str]:
    """Remove all snapshots except the latest, those used by runs in the store, and those in `keep` and `in_use`.

    Returns the removed ids. Shards are not removed, because newer snapshots share them.
    """
    entries = list_snapshots(store)
    if unknown := set(keep) - {entry.snapshot_id for entry in entries}:
        raise NoClipsError(f"can't keep snapshots that are not in {store.root}: {', '.join(sorted(unknown))}")
    kept = {entry.snapshot_id for entry in entries if entry.is_latest or entry.runs} | {*keep, *in_use}
    gone = [entry.snapshot_id for entry in entries if entry.snapshot_id not in kept]
    for snapshot_id in gone if not dry_run else ():
        # Remove the manifest first. If the process is killed before it removes the rest, the folder no longer counts as
        # a snapshot.
        store.remove(SnapshotFiles(snapshot_id).manifest)
        store.remove(SnapshotFiles(snapshot_id).folder)
    return gone
