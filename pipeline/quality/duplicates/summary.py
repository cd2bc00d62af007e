"""Count duplicates and leaks for the report, and list the nearest pairs.

Letters: N clips, P pairs.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.keys import positions_of
from pipeline.quality.duplicates.pair_table import duplicate_groups, load_duplicates
from pipeline.quality.selection import mark_duplicates
from pipeline.segments import HELD_OUT_SPLITS
from pipeline.snapshots.snapshot import Snapshot

NUM_PAIRS = 20


def describe_duplicates(snapshot: Snapshot) -> dict[str, Any]:
    """Count repeated training clips, and held-out clips that share sounds or media with training clips."""
    splits = snapshot.splits
    is_held_out = np.isin(splits, HELD_OUT_SPLITS)
    media = pc.replace_substring_regex(snapshot.index["key"], r"_\d+$", "").combine_chunks()
    is_trained_on = pc.is_in(media, value_set=media.filter(pa.array(~is_held_out))).to_numpy(zero_copy_only=False)
    is_shared = is_held_out & is_trained_on
    described: dict[str, Any] = {
        "is_known": False,
        "num_pairs": 0,
        "num_duplicates": 0,
        "num_of_eval": 0,
        "leaked": {},
        "same_media": {str(name): int((is_shared & (splits == name)).sum()) for name in np.unique(splits[is_held_out])},
        "pairs": [],
    }
    pairs = load_duplicates(snapshot)
    if pairs is None:
        return described
    groups = duplicate_groups(snapshot, pairs)
    found = mark_duplicates(groups, ~is_held_out, is_held_out)
    is_leaked = is_held_out & np.isin(groups, groups[~is_held_out])
    rows_P2 = np.stack([positions_of(pairs[name], snapshot.index["key"]) for name in ("first", "second")], -1)
    here = np.flatnonzero((rows_P2 >= 0).all(-1))  # clips outside the selection have no row
    # Show pairs of a training clip and a held-out clip first. Sort both groups by distance.
    is_within = is_held_out[rows_P2[here]].sum(-1) != 1
    shown = here[np.lexsort([pairs["distance"].to_numpy()[here], is_within])][:NUM_PAIRS]
    listed = [
        {**row, "first_split": str(splits[a]), "second_split": str(splits[b])}
        for row, (a, b) in zip(pairs.take(pa.array(shown)).to_pylist(), rows_P2[shown].tolist(), strict=True)
    ]
    return {
        **described,
        "is_known": True,
        "num_pairs": len(here),
        "num_duplicates": int(found["duplicate"].sum()),
        "num_of_eval": int(found["duplicate_of_eval"].sum()),
        "leaked": {str(name): int((is_leaked & (splits == name)).sum()) for name in np.unique(splits[is_held_out])},
        "pairs": listed,
    }
