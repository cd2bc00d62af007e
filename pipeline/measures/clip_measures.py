"""Measures of a clip, and of what its media were: a row of a shard's table, made by `measuring`."""

import base64
import json
from dataclasses import dataclass, fields

from pipeline.audio.levels import MAX_BIT_RATE, MediaAudio

MEASURES_VERSION = 1
"""Of the definitions below. Tables of another version count as not there."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of a written clip. None is not known, such as what only the media had once a store is measured later."""

    peak: float | None = None
    """Largest absolute sample over all channels of the media; 1 is full scale."""
    rms_db: float | None = None
    """Level of the mono mix in dBFS: a full-scale square wave has 0, a sine −3.01. At least −120."""
    loudness_lufs: float | None = None
    """Integrated loudness of the mono mix by EBU R128, with its gates; −70 if nothing is above the absolute one."""
    clipping: float | None = None
    """Share of the media's samples that stand in runs of two or more at full scale, or at a peak just below."""
    silence: float | None = None
    """Share of frames with digital silence: zeros, or noise below −90 dBFS."""
    dc: float | None = None
    """Mean of the media's samples."""
    bandwidth_hz: float | None = None
    """Where the spectrum ends, at most 8,000; None for silence."""
    codec: str | None = None
    """FFmpeg's name, such as `opus`."""
    rate_hz: int | None = None
    channels: int | None = None
    bit_rate: int | None = None
    """Bits per second of the audio, or of the whole file where that is all that is stated."""
    media_length_s: float | None = None
    media_start_s: float | None = None
    """Where in the media the segment starts."""
    fingerprint: bytes | None = None
    """Of the sound, to find near-identical clips."""

    def to_bytes(self) -> bytes:
        """Encode for a shard's journal."""
        known = {name: value for name in MEASURE_NAMES if (value := getattr(self, name)) is not None}
        if self.fingerprint is not None:
            known["fingerprint"] = base64.b64encode(self.fingerprint).decode()
        return json.dumps(known).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Measures":
        known = json.loads(content)
        if "fingerprint" in known:
            known["fingerprint"] = base64.b64decode(known["fingerprint"])
        if known.get("bit_rate", 0) > MAX_BIT_RATE:  # journals of earlier versions have what headers state
            del known["bit_rate"]
        return cls(**known)


MEASURE_NAMES = [field.name for field in fields(Measures)]
MEDIA_NAMES = [field.name for field in fields(MediaAudio)]
