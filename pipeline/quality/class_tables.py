"""Count the clips, the flawed clips and the co-occurrences of a snapshot's classes.

Letters: N clips, C classes.
"""

from typing import Any

import numpy as np

from pipeline.segments import HELD_OUT_SPLITS
from pipeline.snapshots.snapshot import Snapshot

NUM_COMMON_CLASSES = 24
"""Number of classes that the table of co-occurrences shows."""
NUM_PAIRS = 20


def describe_classes(snapshot: Snapshot, is_flawed: np.ndarray) -> dict[str, Any]:
    """Count the clips and the flawed clips of each class, and how often pairs of classes occur together."""
    labels = snapshot.labels
    targets = snapshot.targets(np.arange(len(snapshot.index))).astype(np.int64)
    is_held_out = np.isin(snapshot.splits, HELD_OUT_SPLITS)
    together_CC = (targets.T @ targets).toarray()
    clips_C = together_CC.diagonal()
    held_out_C, flawed_C = targets.T @ is_held_out.astype(np.int64), targets.T @ is_flawed.astype(np.int64)
    classes = [
        {
            "mid": labels.mids[c],
            "name": labels.names[c],
            "train": int(clips_C[c] - held_out_C[c]),
            "held_out": int(held_out_C[c]),
            "flawed": int(flawed_C[c]),
        }
        for c in range(len(labels))
    ]
    common = np.argsort(-clips_C, kind="stable")[:NUM_COMMON_CLASSES]
    first, second = np.triu_indices(len(labels), 1)
    most = np.argsort(-together_CC[first, second], kind="stable")[:NUM_PAIRS]
    pairs = [
        {
            "first": labels.names[a],
            "second": labels.names[b],
            "clips": int(together_CC[a, b]),
            "share": float(together_CC[a, b] / min(clips_C[a], clips_C[b])),
        }
        for a, b in zip(first[most].tolist(), second[most].tolist(), strict=True)
        if together_CC[a, b]
    ]
    common_table = {
        "names": [labels.names[c] for c in common],
        "clips": together_CC[np.ix_(common, common)].tolist(),
    }
    return {"classes": classes, "pairs_of_classes": pairs, "common_classes": common_table}
