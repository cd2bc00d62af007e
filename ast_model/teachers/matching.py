"""Which clip of a snapshot a published id means."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported.

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.keys import has_repeats, positions_of
from pipeline.snapshots.snapshot import Snapshot

FOLDERS = r"^.*[/\\]"
EXTENSION = r"(?i)\.(wav|flac|mp3|m4a|ogg|opus|webm|mp4)$"
LEADING_Y = "^Y"
"""AudioSet's downloaders put it before a YouTube id, which may begin with `-`."""
TIMES = r"^Y?([A-Za-z0-9_-]{11})_[0-9._-]+$"
"""A YouTube id with its start, or start and end, in whatever unit."""


@dataclass(frozen=True)
class Matches:
    """What each row of a file is of."""

    rows: np.ndarray
    """(N,) rows of the snapshot's index; -1 for a clip that it lacks."""
    num_ambiguous: int
    """Rows that name a recording only, of which the snapshot has several segments; they are left out."""


def match_ids(ids: pa.ChunkedArray, snapshot: Snapshot) -> Matches:
    """Match ids with a snapshot's clips: `YTID_START-MS` of our keys, or a YouTube id.

    An id may have a folder before it, a file's ending or times after it, and a leading Y that its clip lacks. The
    form that changes least and names a clip counts, so an id that itself begins with Y stays what it is.
    """
    keys = snapshot.index["key"]
    recordings = pc.replace_substring_regex(keys, r"_\d+$", "")
    several = pa.array([], pa.string())
    if has_repeats(recordings):
        counts = pc.value_counts(recordings)
        several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    single_rows = np.flatnonzero(~pc.is_in(recordings, value_set=several).to_numpy())
    singles = recordings.take(pa.array(single_rows))

    names = pc.replace_substring_regex(pc.replace_substring_regex(ids, FOLDERS, ""), EXTENSION, "")
    rows, is_ambiguous = np.full(len(ids), -1), np.zeros(len(ids), bool)
    for pattern, replacement in (("^$", ""), (LEADING_Y, ""), (TIMES, r"\1")):
        # Only of those that are left: of two million ids most match at once.
        left = np.flatnonzero((rows < 0) & ~is_ambiguous)
        forms = pc.replace_substring_regex(names.take(pa.array(left)), pattern, replacement)
        by_key, by_recording = positions_of(forms, keys), positions_of(forms, singles)
        if len(single_rows):
            by_recording = np.where(by_recording >= 0, single_rows[by_recording], -1)
        rows[left] = np.where(by_key >= 0, by_key, by_recording)
        is_several = pc.fill_null(pc.is_in(forms, value_set=several), False).to_numpy()
        is_ambiguous[left] = is_several & (rows[left] < 0)
    return Matches(rows, int(is_ambiguous.sum()))
