"""Measures of a clip and of its original media: a row of a shard's table of measures."""

from dataclasses import dataclass, fields

from pipeline.audio.levels import MediaAudio

MEASURES_VERSION = 1
"""Version of the definitions below. Tables of other versions are ignored."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of a written clip. None means unknown, for example media properties of a clip measured later."""

    peak: float | None = None
    """Largest absolute sample over all channels of the media; 1 is full scale."""
    rms_db: float | None = None
    """Level of the mono mix in dBFS: a full-scale square wave has 0, a sine −3.01. At least −120."""
    loudness_lufs: float | None = None
    """Integrated loudness of the mono mix by EBU R128 with its gates; −70 if no block passes the absolute gate."""
    clipping: float | None = None
    """Share of the media's samples in runs of two or more at full scale, or at a peak just below it."""
    silence: float | None = None
    """Share of frames with digital silence: zeros, or noise below −90 dBFS."""
    dc: float | None = None
    """Mean of the media's samples."""
    mix_db: float | None = None
    """Level of the channels' average relative to the channels, in dB: 0 for equal channels, −3 for two unrelated ones.
    Below −20 they cancel each other, and the clip consists of one channel. None for silence and single channels."""
    bandwidth_hz: float | None = None
    """Upper end of the spectrum, at most 8,000; None for silence."""
    codec: str | None = None
    """FFmpeg's name, such as `opus`."""
    rate_hz: int | None = None
    channels: int | None = None
    bit_rate: int | None = None
    """Bits per second of the audio, or of the whole file if the header states no other rate."""
    media_length_s: float | None = None
    media_start_s: float | None = None
    """Start of the segment within the media."""
    fingerprint: bytes | None = None
    """Acoustic fingerprint, to find near-identical clips."""


MEDIA_NAMES = [field.name for field in fields(MediaAudio)]
