"""Choose the model's window for the lengths of clips, and warn of lengths that distort results."""

import logging
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from pipeline.fbank_settings import FRAMES_PER_S, SAMPLE_RATE_HZ, num_frames_of
from pipeline.recordings.tables import LabelledClip

log = logging.getLogger(__name__)

FRAME_GRID = 16
"""The number of frames is a multiple of this, the size of a patch."""
MIN_FRAMES = 32
WINDOW_QUANTILE = 0.98
NUM_NAMED = 5
"""Maximum number of longer clips to name in the log."""
INNER_QUANTILES = (0.1, 0.9)
"""Lengths of two classes barely overlap if these quantiles do not."""


def plan_window(clips: Sequence[LabelledClip]) -> int:
    """Return the number of frames that 98 % of the clips fit into; padding all clips to the longest slows training."""
    frames = sorted(_num_frames(clip) for clip in clips)
    typical = frames[math.ceil(WINDOW_QUANTILE * len(clips)) - 1]
    num_frames = max(MIN_FRAMES, math.ceil(typical / FRAME_GRID) * FRAME_GRID)
    longer = sorted((clip for clip in clips if _num_frames(clip) > num_frames), key=length_ms, reverse=True)
    if longer:
        named = ", ".join(f"{clip.path.name} ({length_ms(clip) / 1000:.1f} s)" for clip in longer[:NUM_NAMED])
        log.info(
            "%d of %d clips are longer than the model's window of %.1f s, which sees a part of each: %s%s",
            *(len(longer), len(clips), num_frames / FRAMES_PER_S, named, ", …" * (len(longer) > NUM_NAMED)),
        )
    return num_frames


def warn_of_distinct_lengths(clips: Sequence[LabelledClip]) -> None:
    """Warn if the lengths of two classes barely overlap, since a model could tell them apart by the padding."""
    lengths_of: dict[str, list[int]] = defaultdict(list)
    for clip in clips:
        for label in clip.labels:
            lengths_of[label].append(length_ms(clip))
    names = sorted(lengths_of)
    low_C, high_C = np.array([np.quantile(lengths_of[name], INNER_QUANTILES) for name in names]).T
    gap_CC = low_C - high_C[:, None]  # from the long end of a row's class to the short end of a column's
    if not (gap_CC > 0).any():
        return
    short, long = np.unravel_index(np.argmax(gap_CC), gap_CC.shape)
    log.warning(
        "%d pairs of classes differ in length, such as %s (up to %.1f s) and %s (from %.1f s): a model can tell them"
        " apart by the padding; cut the longer sounds into parts of the shorter length, with"
        " start and end in a table",
        *(int((gap_CC > 0).sum()), names[short], high_C[short] / 1000, names[long], low_C[long] / 1000),
    )


def length_ms(clip: LabelledClip) -> int:
    return clip.end_ms - clip.start_ms


def _num_frames(clip: LabelledClip) -> int:
    return num_frames_of(length_ms(clip) * SAMPLE_RATE_HZ // 1000)
