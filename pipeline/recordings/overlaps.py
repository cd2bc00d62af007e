"""Give clips the labels of all annotations that overlap them."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.errors import InputError, quote
from pipeline.recordings.sound_tables import LABEL_SEPARATOR, NO_END
from pipeline.recordings.tables import LabelledClip

log = logging.getLogger(__name__)

MIN_SHARE = 0.1
"""Minimum overlap of a clip and an annotation, as a share of the shorter one, because bounds drawn by hand are
inexact."""


def check_whole_files(rows: Sequence[LabelledClip], source: Path) -> None:
    """Raise InputError if two rows give a whole file different labels, which is probably a mistake."""
    first_of: dict[Path, LabelledClip] = {}
    for row in rows:
        if (row.start_ms, row.end_ms) == (0, NO_END):
            first = first_of.setdefault(row.path, row)
            if set(first.labels) != set(row.labels):
                found = " and ".join(LABEL_SEPARATOR.join(each.labels) for each in (first, row))
                raise InputError(
                    f"{source}: expected one row for {row.path}, found {quote(found)}; write all labels of a file into"
                    f" one row, separated by {LABEL_SEPARATOR}, or state start and end"
                )


def merge_overlaps(clips: Sequence[LabelledClip], rows: Sequence[LabelledClip]) -> list[LabelledClip]:
    """Return the clips with the labels of all overlapping rows, and with one clip per file and start.

    rows: annotations with their ends. Of several clips with the same start the longest remains.
    """
    rows_of: dict[Path, list[LabelledClip]] = defaultdict(list)
    for row in rows:
        rows_of[row.path].append(row)
    bounds_of = {path: np.array([(row.start_ms, row.end_ms) for row in each]) for path, each in rows_of.items()}
    longest: dict[tuple[Path, int], LabelledClip] = {}
    changed: list[LabelledClip] = []
    for clip in clips:
        overlapping = _overlapping(clip, bounds_of[clip.path])
        labels = dict.fromkeys(clip.labels)
        labels |= dict.fromkeys(label for place in overlapping for label in rows_of[clip.path][place].labels)
        if len(labels) > len(clip.labels):
            changed.append(clip)
        merged = replace(clip, labels=tuple(labels))
        known = longest.setdefault((clip.path, clip.start_ms), merged)
        if known.end_ms < merged.end_ms:
            longest[clip.path, clip.start_ms] = merged
    if changed:
        log.warning(
            "%d of %d clips overlap annotations with other labels, such as %s from %g s, and have all these labels; end"
            " an annotation where the next one starts if each clip should have one",
            *(len(changed), len(clips), changed[0].path, changed[0].start_ms / 1000),
        )
    return list(longest.values())


def _overlapping(clip: LabelledClip, bounds: np.ndarray) -> list[int]:
    starts, ends = bounds.T
    overlap = np.minimum(ends, clip.end_ms) - np.maximum(starts, clip.start_ms)
    shorter = np.minimum(ends - starts, clip.end_ms - clip.start_ms)
    return np.flatnonzero(overlap >= np.maximum(MIN_SHARE * shorter, 1)).tolist()
