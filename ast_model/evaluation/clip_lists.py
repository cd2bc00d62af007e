"""Named lists of evaluation clips, and the share of a list that an evaluation covers.

Published figures for AudioSet refer to different clips, since videos vanish. Results are comparable only on the same
clips.
"""

import base64
import hashlib
import lzma
from dataclasses import dataclass

import fsspec
import numpy as np

from ast_model.evaluation.published_lists import DIGESTS, NUM_SEGMENTS, PATTERNS
from pipeline.errors import ConfigError, MismatchError, NoClipsError, describe_storage_error
from pipeline.segments import read_segment_table
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store import layout

COMMON = "common-18781"
"""Name of the clips that all published lists contain."""
PUBLISHED_LISTS = (*DIGESTS, COMMON)
MAX_IDS_SHOWN = 3


@dataclass(frozen=True)
class Coverage:
    """How many clips of a list were scored."""

    clip_list: str
    """Name of the list, or path of its file."""
    num_listed: int
    num_scored: int

    def __str__(self) -> str:
        missing = self.num_listed - self.num_scored
        return f"{self.num_scored:,} of {self.num_listed:,}" + (f"; {missing:,} missing" if missing else "")


def find_listed_clips(snapshot: Snapshot, split: str, clip_list: str) -> tuple[np.ndarray, int]:
    """Return the rows of a list's clips in the snapshot's index, and the number of clips in the list.

    clip_list: a name in `PUBLISHED_LISTS`, or the path or address of a file with one YouTube id or key per line. Empty:
        all clips of the split.
    Raises ConfigError for an unknown list, MismatchError for ids that are not in the split, NoClipsError if no clip of
    the list is stored.
    """
    rows = snapshot.rows_of((split,))
    if not clip_list:
        return rows, len(rows)
    keys = snapshot.index["key"].take(rows).to_pylist()
    planned = read_segment_table(snapshot.store.url(layout.segments_file(split)))["key"].to_pylist()
    ids = set(read_clip_list(clip_list, planned))
    known = {name for key in (*planned, *keys) for name in (key, _id_of(key))}
    if unknown := sorted(ids - known):
        raise MismatchError(
            f"expected in {clip_list} ids or keys of clips in the split {split}, found {len(unknown)} others, such as"
            f" {', '.join(unknown[:MAX_IDS_SHOWN])}"
        )
    is_listed = np.array([key in ids or _id_of(key) in ids for key in keys])
    if not is_listed.any():
        raise NoClipsError(
            f"expected stored clips of {clip_list} in {split} of snapshot {snapshot.snapshot_id}, found none of"
            f" {len(ids):,}"
        )
    return rows[is_listed], len(ids)


def read_clip_list(clip_list: str, planned: list[str]) -> list[str]:
    """Return the ids of a published list or of a file. planned: keys of the split's segments, stored or not."""
    if clip_list in PUBLISHED_LISTS:
        return published_ids(clip_list, sorted({_id_of(key) for key in planned}))
    try:
        with fsspec.open(clip_list, "r", encoding="utf-8-sig") as file:
            ids = [line.strip() for line in file]  # pyright: ignore[reportGeneralTypeIssues]
    except Exception as error:  # every storage library raises its own errors
        raise ConfigError(
            f"expected a file or one of {', '.join(PUBLISHED_LISTS)} as the list of clips, found {clip_list!r}:"
            f" {describe_storage_error(error)}"
        ) from error
    ids = [each for each in ids if each and not each.startswith("#")]
    if not ids:
        raise ConfigError(f"expected one YouTube id or key per line in {clip_list}, found none")
    return ids


def published_ids(name: str, segment_ids: list[str]) -> list[str]:
    """Return the ids of a published list. segment_ids: sorted ids of Google's evaluation segments.

    Raises MismatchError for other segments.
    """
    patterns = np.frombuffer(lzma.decompress(base64.b85decode(PATTERNS.replace("\n", ""))), np.uint8)
    lists = {}
    if len(segment_ids) == NUM_SEGMENTS:
        for bit, each in enumerate(DIGESTS):
            lists[each] = [segment_ids[row] for row in np.flatnonzero(patterns >> bit & 1)]
    digests = {each: hashlib.sha256("".join(f"{id_}\n" for id_ in ids).encode()) for each, ids in lists.items()}
    if {each: digest.hexdigest() for each, digest in digests.items()} != DIGESTS:
        raise MismatchError(
            f"expected Google's eval_segments.csv with {NUM_SEGMENTS:,} segments for the list {name}, found"
            f" {len(segment_ids):,} segments in the split's table; give the list as a file"
        )
    if name == COMMON:
        return sorted(set.intersection(*(set(ids) for ids in lists.values())))
    return lists[name]


def _id_of(key: str) -> str:
    """Return the YouTube id of a key, which ends with the start in milliseconds."""
    return key.rpartition("_")[0]
