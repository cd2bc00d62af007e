"""The measures of a clip and its original media, which form a row in a shard's table of measures."""

from dataclasses import dataclass, fields

from pipeline.audio.levels import MediaAudio

MEASURES_VERSION = 1
"""Version of the definitions below. Tables of other versions are ignored."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of a written clip. None means unknown, such as media properties that were not measured in time."""

    peak: float | None = None
    """Largest absolute sample over all channels of the media, relative to full scale."""
    rms_db: float | None = None
    """Level of the mono mix in dBFS, at least −120. A full-scale square wave has 0 dB and a sine −3.01 dB."""
    loudness_lufs: float | None = None
    """Integrated loudness of the mono mix by EBU R128, with its gates. −70 if no block passes the absolute gate."""
    clipping: float | None = None
    """Share of the media's samples that are in runs of two or more at full scale, or at a peak just below it."""
    silence: float | None = None
    """Share of frames with digital silence, which means zeros or noise below −90 dBFS."""
    dc: float | None = None
    """Mean of the media's samples (DC offset)."""
    mix_db: float | None = None
    """Level of the channels' average relative to the channels, in dB: 0 for equal channels, −3 for two unrelated ones.
    Below −20 they cancel each other, and the clip consists of one channel. None for silence and single channels."""
    bandwidth_hz: float | None = None
    """Upper end of the spectrum in Hz, at most 8,000; None for silence."""
    codec: str | None = None
    """FFmpeg's name of the codec, such as `opus`."""
    rate_hz: int | None = None
    channels: int | None = None
    bit_rate: int | None = None
    """Bits per second of the audio track, or of the whole file if the header gives no rate for the track."""
    media_length_s: float | None = None
    media_start_s: float | None = None
    """Start of the segment within the media."""
    fingerprint: bytes | None = None
    """Acoustic fingerprint, to find near-identical clips."""


MEDIA_NAMES = [field.name for field in fields(MediaAudio)]
