"""Find near-identical clips in different splits, which make results too good."""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jobs.preprocessing.duplicates import run_on_this_node
from pipeline.quality.duplicates.pair_table import MAX_DISTANCE, duplicate_groups, load_duplicates, write_duplicates
from pipeline.quality.duplicates.pairs import find_pairs
from pipeline.recordings.tables import LabelledClip
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

NUM_NAMED = 5


def find_near_copies(snapshot: Snapshot) -> pa.Table:
    """Return the pairs of near-identical clips. Searches for them unless they are stored. Ray must be running."""
    pairs = load_duplicates(snapshot)
    if pairs is None:
        with snapshot.store.scratch() as folder:
            pairs, _ = find_pairs(snapshot, folder, run_on_this_node)
        write_duplicates(snapshot, pairs, MAX_DISTANCE)
    return pairs


def describe_near_copies(snapshot: Snapshot, pairs: pa.Table, clips: Sequence[LabelledClip]) -> list[str]:
    """Return a line about groups of near-identical clips in different splits, or no lines without such groups."""
    groups = duplicate_groups(snapshot, pairs)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    leaks = [rows for rows in members if len(set(snapshot.splits[rows])) > 1]
    if not leaks:
        return []
    name_of = {clip.key: f"{clip.path.name} from {clip.start_ms / 1000:g} s" for clip in clips}
    keys = snapshot.index["key"]
    named = []
    for rows in leaks[:NUM_NAMED]:
        firsts = [rows[snapshot.splits[rows] == split][0] for split in sorted(set(snapshot.splits[rows]))]
        named.append(" and ".join(f"{name_of[keys[int(row)].as_py()]} ({snapshot.splits[row]})" for row in firsts))
    more = f" and {len(leaks) - NUM_NAMED} more" if len(leaks) > NUM_NAMED else ""
    num_clips = sum(map(len, leaks))
    return [
        f"{'leaks':12} {num_clips} clips have near-identical clips in other splits, so the metrics are too high:"
        f" {'; '.join(named)}{more}. Give them one group (--group-by or the column group)"
    ]
