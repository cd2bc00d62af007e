"""Limits for single requests and for all requests together."""

from dataclasses import dataclass

from pipeline.config import check_above_0
from pipeline.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Host names of this machine. They need no token."""
MAX_AUDIO_S = 3_600
"""Longest audio that the decoder accepts. Copied from its module, which imports PyTorch."""


@dataclass(frozen=True)
class Limits:
    """Limits of a service. It refuses requests that exceed them with a status and a message."""

    max_mb: float = 50.0
    """Maximum megabytes per upload."""
    max_audio_s: float = 600.0
    """Maximum seconds of audio per upload."""
    max_windows: int = 1_000
    """Maximum windows per timeline."""
    max_requests: int = 32
    """Maximum concurrent uploads per replica. Further uploads get status 429 with Retry-After."""
    max_total_mb: float = 500.0
    """Maximum total megabytes of all uploads at a replica. Further uploads get status 429."""
    upload_s: float = 60.0
    """Maximum seconds per upload."""
    decode_s: float = 30.0
    """Maximum seconds for decoding an upload."""

    def __post_init__(self) -> None:
        check_above_0(self, vars(self), "limits.")
        if self.max_audio_s > MAX_AUDIO_S:
            raise ConfigError(f"--limits.max-audio-s must be at most {MAX_AUDIO_S}, found {self.max_audio_s}")
        if self.max_total_mb < self.max_mb:
            raise ConfigError(
                f"--limits.max-total-mb must be at least --limits.max-mb, {self.max_mb}, found {self.max_total_mb}"
            )
