"""Measure levels, codec, rate and channels of the original media."""

from dataclasses import dataclass
from math import ceil

import numpy as np

CLIPPED_FROM = 0.95
"""Minimum level of clipping. Telephone codecs reach only 0.98, and 8-bit samples 0.99."""
LEVEL_TOLERANCE = 2**-12
"""Relative tolerance within which samples count as equal to the highest level."""
MAX_BIT_RATE = 2**31 - 1
"""Maximum plausible bit rate. Some Vorbis files state −1 for unknown, which FFmpeg reads as 4,294,967,295."""
MIN_RUN = 2
"""Minimum run of samples at the highest level that counts as clipping. A single such sample may just be the peak."""


@dataclass(frozen=True, slots=True)
class MediaAudio:
    """Properties of the original media in the interval of a segment."""

    peak: float
    """Largest absolute sample over all channels, relative to full scale. Lossy codecs may exceed 1."""
    clipping: float
    """Share of the samples of all channels that are clipped, as defined by `Levels`."""
    dc: float
    """Mean of the samples of all channels."""
    mix_db: float | None
    """Level of the average of all channels relative to the level of the channels, in dB. None for silence and for mono
    media."""
    codec: str
    rate_hz: int
    channels: int
    bit_rate: int | None
    """Bits per second, at most `MAX_BIT_RATE`. None if unknown."""
    media_length_s: float | None
    media_start_s: float


class Levels:
    """Peak and clipping of a segment's samples over all channels.

    Samples in runs of two or more at the highest level count as clipped. The highest level is full scale, or the peak
    if it is slightly lower. After lossy coding flat tops oscillate around full scale, so this finds a third to a half
    of them, and the peak is far above 1.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self._num_samples = 0
        self._num_clipped = 0

    @property
    def clipping(self) -> float:
        return self._num_clipped / max(self._num_samples, 1)

    def add(self, samples_CS: np.ndarray) -> None:
        """Add samples (channels, S) of any type that FFmpeg returns."""
        if not samples_CS.size:
            return
        full_scale = highest = 1.0
        if samples_CS.dtype.kind in "iu":
            full_scale = float(1 << (8 * samples_CS.itemsize - 1))
            highest = full_scale - 1
        if samples_CS.dtype.kind == "u":
            samples_CS = samples_CS.astype(np.int16) - 128
        peak = max(float(samples_CS.max()), -float(samples_CS.min())) / full_scale
        if min(peak, 1) > min(self.peak, 1) * (1 + LEVEL_TOLERANCE):
            self._num_clipped = 0  # runs so far are below the new highest level
        self.peak = max(self.peak, peak)
        self._num_samples += samples_CS.size
        if peak >= CLIPPED_FROM:
            level = min(self.peak * full_scale, highest) * (1 - LEVEL_TOLERANCE)
            if full_scale > 1:
                level = ceil(level)  # comparing integers with a float is ten times as slow
            # Examine only the positions of loud samples, which are few.
            places = [np.flatnonzero((channel >= level) | (channel <= -level)) for channel in samples_CS]
            self._num_clipped += sum(_count_in_runs(each) for each in places)


def _count_in_runs(places: np.ndarray) -> int:
    """Count the positions in runs of at least `MIN_RUN`."""
    ends = np.flatnonzero(np.diff(places, append=-1) != 1)
    lengths = np.diff(ends, prepend=-1)
    return int(lengths[lengths >= MIN_RUN].sum())
