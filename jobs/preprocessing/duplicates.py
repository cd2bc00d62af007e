"""The command `duplicates`, which lists near-identical clips."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pandas as pd
import pyarrow as pa

from jobs.command_line.cli import resolve_root
from jobs.preprocessing.commands import measure_missing
from jobs.preprocessing.settings import DuplicatesCommand
from pipeline.cluster.session import ray_session
from pipeline.cluster.tasks import run_tasks
from pipeline.keys import positions_of
from pipeline.progress import show_progress
from pipeline.quality.duplicates.pair_table import (
    MAX_DISTANCE,
    duplicate_groups,
    load_duplicates,
    write_duplicates,
)
from pipeline.quality.duplicates.pairs import find_pairs
from pipeline.segments import HELD_OUT_SPLITS
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store


def find_duplicates(command: DuplicatesCommand) -> None:
    store = Store(resolve_root(command.root))
    snapshot = load_snapshot(store, command.snapshot.partition("-")[0] or None)
    pairs = load_duplicates(snapshot)
    if pairs is None:
        with ray_session(), store.scratch() as folder:
            measure_missing(store, command.max_in_flight)
            pairs, num_missing = find_pairs(snapshot, folder, run_on_this_node)
        if num_missing:
            print(f"{num_missing} of {len(snapshot.index)} clips have no fingerprint and were skipped")
        write_duplicates(snapshot, pairs, MAX_DISTANCE)
    print_duplicates(snapshot, pairs, command.num_pairs)


def run_on_this_node(
    function: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any, num_items: int
) -> Iterator[tuple[Any, Any]]:
    """Run a step of the search as Ray tasks on this node, where its scratch files are, and show the progress."""
    with show_progress(function.__name__.replace("_", " "), num_items, "tasks") as progress:
        tasks = run_tasks(function, items, shared, max_in_flight=os.cpu_count() or 1, on_this_node=True)
        for item, result in tasks:
            if isinstance(result, Exception):
                raise result
            yield item, result
            progress.advance(1)


def print_duplicates(snapshot: Snapshot, pairs: pa.Table, num_pairs: int) -> None:
    """Print the numbers of near-identical clips within and across splits, and the closest pairs."""
    if not len(pairs):
        print(f"no near-identical clips in snapshot {snapshot.snapshot_id}")
        return
    clips = pd.DataFrame({"split": snapshot.splits, "group": duplicate_groups(snapshot, pairs)})
    clips = clips[clips["group"].duplicated(keep=False)]
    print(f"{len(clips)} clips in {clips['group'].nunique()} groups of near-identical clips, {len(pairs)} pairs")
    # A clip counts for another split if its group has a clip there, and for its own split if its group has two.
    counts = clips.groupby(["group", "split"]).size().unstack(fill_value=0)
    table = pd.DataFrame(
        {
            other: {split: int(counts[split][counts[other] > (split == other)].sum()) for split in counts}
            for other in counts
        }
    )
    print(f"\nclips of a split (row) with a near-identical clip in a split (column)\n{table.to_string()}")
    is_held_out = clips["split"].isin(HELD_OUT_SPLITS)
    held_out_groups = clips["group"][is_held_out]
    if num_leaks := int(clips["group"][~is_held_out].isin(held_out_groups).sum()):
        print(
            f"\n{num_leaks} training clips are near-identical to evaluation clips; exclude them from training with"
            " --data.exclude duplicate_of_eval"
        )
    shown = pairs.to_pandas()
    for name in ("first", "second"):
        shown[f"{name}_split"] = snapshot.splits[positions_of(pairs[name], snapshot.index["key"])]
    shown["same_split"] = shown["first_split"] == shown["second_split"]
    shown = shown.sort_values(["same_split", "distance"], kind="stable").drop(columns="same_split").head(num_pairs)
    if len(shown):
        print(f"\n{shown.to_string(index=False, float_format='{:.2f}'.format)}")
