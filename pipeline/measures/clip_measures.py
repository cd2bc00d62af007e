"""The measures of a clip and of its original media. They form a row in a shard's table of measures."""

from dataclasses import dataclass, fields

from pipeline.audio.levels import MediaAudio

MEASURES_VERSION = 1
"""Version of the definitions below. Tables of other versions are ignored."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of a written clip. None means that a value is unknown, for example because the media are gone."""

    peak: float | None = None
    """Largest absolute sample over all channels of the media, relative to full scale."""
    rms_db: float | None = None
    """RMS level of the mono mix in dBFS, at least −120. A full-scale square wave has 0 dB, and a full-scale sine has
    −3.01 dB."""
    loudness_lufs: float | None = None
    """Integrated loudness of the mono mix, measured per EBU R128 including gating. It is −70 if no block passes the
    absolute gate."""
    clipping: float | None = None
    """Share of the media's samples that belong to runs of two or more samples at full scale or at a peak just below
    it."""
    silence: float | None = None
    """Share of frames with digital silence, which means zeros or noise below −90 dBFS."""
    dc: float | None = None
    """Mean of the media's samples (DC offset)."""
    mix_db: float | None = None
    """Level of the average of the channels relative to the level of the channels, in dB. It is 0 for equal channels and
    −3 for two unrelated channels. Below −20 the channels cancel each other, and the clip consists of one channel. None
    for silence and for mono media."""
    bandwidth_hz: float | None = None
    """Upper end of the spectrum in Hz, at most 8,000. None for silence."""
    codec: str | None = None
    """Name of the codec in FFmpeg, such as `opus`."""
    rate_hz: int | None = None
    channels: int | None = None
    bit_rate: int | None = None
    """Bits per second of the audio track. If the header gives no rate for the track, bits per second of the whole
    file."""
    media_length_s: float | None = None
    media_start_s: float | None = None
    """Position of the segment's start in the media."""
    fingerprint: bytes | None = None
    """Acoustic fingerprint for finding near-identical clips."""


MEDIA_NAMES = [field.name for field in fields(MediaAudio)]
