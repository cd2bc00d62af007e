"""How the clips of each class sound, to be read beside a model's results."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.measures.table import read_measures
from pipeline.snapshots.snapshot import Snapshot

MEDIANS, MEANS = ("loudness_lufs", "bandwidth_hz"), ("silence", "clipping")


def class_quality(snapshot: Snapshot, split: str) -> pd.DataFrame:
    """Return a row per class, in the snapshot's order, about its clips in a split; no number where none was measured.

    `clip_loudness_lufs` and `clip_bandwidth_hz` are medians, `clip_silence` and `clip_clipping` means.
    """
    rows = snapshot.rows_of((split,))
    of_split = replace(snapshot, index=snapshot.index.take(pa.array(rows)).combine_chunks())
    measures = read_measures(of_split, [*MEDIANS, *MEANS]).to_pandas()
    clips, classes = snapshot.targets(rows).nonzero()
    by_class = measures.iloc[clips].groupby(classes)
    table = pd.concat([by_class[list(MEDIANS)].median(), by_class[list(MEANS)].mean()], axis=1)
    return table.reindex(np.arange(len(snapshot.labels))).add_prefix("clip_")
