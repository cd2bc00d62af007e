"""Match published ids to a snapshot's clips."""

# pyright: reportAttributeAccessIssue=false
# pyarrow defines its compute functions at import time, so pyright does not see them.

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.keys import has_repeats, positions_of
from pipeline.snapshots.snapshot import Snapshot

FOLDERS = r"^.*[/\\]"
EXTENSION = r"(?i)\.(wav|flac|mp3|m4a|ogg|opus|webm|mp4)$"
LEADING_Y = "^Y"
"""Prefix that some AudioSet downloaders add to file names, since YouTube ids may start with `-`."""
TIMES = r"^Y?([A-Za-z0-9_-]{11})_[0-9._-]+$"
"""A YouTube id followed by the segment's start and optionally its end, in any unit."""


@dataclass(frozen=True)
class Matches:
    """The clip of each row of a score file."""

    rows: np.ndarray
    """Row (N,) in the snapshot's index for each row of the score file; -1 if the snapshot lacks the clip."""
    num_ambiguous: int
    """Number of skipped rows that name a video without a start although the snapshot has several of its segments."""


def match_ids(ids: pa.ChunkedArray, snapshot: Snapshot) -> Matches:
    """Match ids to a snapshot's clips. Accepts keys of the store (`YTID_START-MS`) and YouTube ids.

    If an id does not match, folders, file extensions, a leading Y and times are removed step by step in this order. An
    id that really starts with Y therefore matches before the Y is removed.
    """
    keys = snapshot.index["key"]
    videos = pc.replace_substring_regex(keys, r"_\d+$", "")
    repeated = pa.array([], pa.string())
    if has_repeats(videos):
        counts = pc.value_counts(videos)
        repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    single_rows = np.flatnonzero(~pc.is_in(videos, value_set=repeated).to_numpy())
    singles = videos.take(pa.array(single_rows))

    names = pc.replace_substring_regex(pc.replace_substring_regex(ids, FOLDERS, ""), EXTENSION, "")
    rows, is_ambiguous = np.full(len(ids), -1), np.zeros(len(ids), bool)
    for pattern, replacement in (("^$", ""), (LEADING_Y, ""), (TIMES, r"\1")):
        # Process only unmatched ids, because most of two million ids match in the first round.
        unmatched = np.flatnonzero((rows < 0) & ~is_ambiguous)
        forms = pc.replace_substring_regex(names.take(pa.array(unmatched)), pattern, replacement)
        by_key, by_video = positions_of(forms, keys), positions_of(forms, singles)
        if len(single_rows):
            by_video = np.where(by_video >= 0, single_rows[by_video], -1)
        rows[unmatched] = np.where(by_key >= 0, by_key, by_video)
        is_repeated = pc.fill_null(pc.is_in(forms, value_set=repeated), False).to_numpy()
        is_ambiguous[unmatched] = is_repeated & (rows[unmatched] < 0)
    return Matches(rows, int(is_ambiguous.sum()))
