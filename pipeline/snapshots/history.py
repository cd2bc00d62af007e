"""The snapshots of a store: list them, tell what came and went between two, remove those that nothing refers to."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipeline.errors import NoClipsError
from pipeline.snapshots.snapshot import Snapshot, latest_snapshot_id
from pipeline.store.storage import Store

FOLDER = "snapshots"


@dataclass(frozen=True)
class Entry:
    """A snapshot in the list."""

    snapshot_id: str
    num_clips: dict[str, int]
    sidecar_table: dict[str, Any]
    is_latest: bool
    runs: tuple[str, ...]
    """Training runs in the store that refer to it."""


def list_snapshots(store: Store) -> list[Entry]:
    """List all complete snapshots, the latest last."""
    names = [name for name in store.list(FOLDER, "/manifest.json")]
    latest = latest_snapshot_id(store)
    runs = runs_by_snapshot(store)
    entries = []
    for name in names:
        snapshot_id = name.split("/")[1]
        num_clips = store.read_json(f"{FOLDER}/{snapshot_id}/stats.json")["num_clips"]
        sidecar_table = store.read_json(name)["split_counts"]
        used_by = tuple(sorted(runs.get(snapshot_id, ())))
        entries.append(Entry(snapshot_id, num_clips, sidecar_table, snapshot_id == latest, used_by))
    return sorted(entries, key=lambda entry: (entry.is_latest, sum(entry.num_clips.values()), entry.snapshot_id))


def runs_by_snapshot(store: Store) -> dict[str, set[str]]:
    """Tell from the JSON files under `runs/` which run names which snapshot."""
    found: dict[str, set[str]] = {}
    for name in store.list("runs", ".json"):
        for snapshot_id in re.findall(r'"snapshot(?:_id)?": ?"(\w+)"', json.dumps(store.read_json(name))):
            found.setdefault(snapshot_id, set()).add(name.split("/")[1])
    return found


def diff_snapshots(old: Snapshot, new: Snapshot) -> pd.DataFrame:
    """Return a row per split and class in which something changed: clips before, came, went, and after."""
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
    """Remove snapshots that are not the latest, named by no run in the store, nor in `keep` or `in_use`.

    Return which. Shards stay: newer snapshots share them.
    """
    entries = list_snapshots(store)
    if unknown := set(keep) - {entry.snapshot_id for entry in entries}:
        raise NoClipsError(f"expected snapshots of {store.root} to keep, found none named {', '.join(sorted(unknown))}")
    kept = {entry.snapshot_id for entry in entries if entry.is_latest or entry.runs} | {*keep, *in_use}
    gone = [entry.snapshot_id for entry in entries if entry.snapshot_id not in kept]
    for snapshot_id in gone if not dry_run else ():
        # The manifest first: a folder without it is no snapshot, whatever happens now.
        store.remove(f"{FOLDER}/{snapshot_id}/manifest.json")
        store.remove(f"{FOLDER}/{snapshot_id}")
    return gone
