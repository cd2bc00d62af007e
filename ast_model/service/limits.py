"""Limits on a request, and on all of them together."""

from dataclasses import dataclass

from pipeline.config import check_above_0
from pipeline.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine, which need no token."""
MAX_AUDIO_S = 3_600
"""The longest file that is decoded as a whole. Said here again: the decoder's own constant would import PyTorch."""


@dataclass(frozen=True)
class Limits:
    """Limits of a service. Whatever is beyond them is refused with a status and a sentence."""

    max_mb: float = 50.0
    """Megabytes of one upload."""
    max_audio_s: float = 600.0
    """Seconds of audio in one upload."""
    max_windows: int = 1_000
    """Windows of one timeline."""
    max_requests: int = 32
    """Uploads that are worked on or wait at a replica; what comes then is answered with 429 and Retry-After."""
    max_total_mb: float = 500.0
    """Megabytes of all uploads that a replica holds; what comes then is answered with 429, too."""
    upload_s: float = 60.0
    """Seconds that an upload may take."""
    decode_s: float = 30.0
    """Seconds that decoding an upload may take."""

    def __post_init__(self) -> None:
        check_above_0(self, vars(self), "limits.")
        if self.max_audio_s > MAX_AUDIO_S:
            raise ConfigError(f"--limits.max-audio-s must be at most {MAX_AUDIO_S}, found {self.max_audio_s}")
        if self.max_total_mb < self.max_mb:
            raise ConfigError(
                f"--limits.max-total-mb must be at least --limits.max-mb, {self.max_mb}, found {self.max_total_mb}"
            )
