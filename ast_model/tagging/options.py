"""Options for tagging. Imports no PyTorch, because the settings of commands inherit from them."""

import math
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.fbank_settings import FRAMES_PER_S

TOLERANCE = 1e-6
"""Tolerance in frames for the rounding error of hops such as 0.1 + 0.2 s."""


@dataclass(frozen=True, kw_only=True)
class TaggingOptions:
    """Options that select tags, shared by jobs/predict.py, the service and `Tagger`."""

    top_k: int = 5
    """Maximum number of classes per file or window."""
    threshold: float = 0.0
    """Minimum score of a class."""
    classes: tuple[str, ...] = ()
    """Names of the classes to return. Default: all."""
    timeline: bool = False
    """Tag windows instead of whole files."""
    window_s: float | None = None
    """Window length in seconds. Default: the model's."""
    hop_s: float | None = None
    """Distance between the starts of windows in seconds, a multiple of 0.01. Default: half a window."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, found {self.top_k}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be between 0 and 1, found {self.threshold}")
        for name in ("window_s", "hop_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, found {seconds}")
        if self.hop_s is not None:
            _check_whole_frames(self.hop_s)


def _check_whole_frames(hop_s: float) -> None:
    """Raise ConfigError unless the hop is a whole number of frames, because windows can only start at frames."""
    num_frames = hop_s * FRAMES_PER_S
    if abs(num_frames - round(num_frames)) > TOLERANCE:
        neighbours = [frames / FRAMES_PER_S for frames in (math.floor(num_frames), math.ceil(num_frames)) if frames]
        raise ConfigError(
            f"hop_s must be a multiple of {1 / FRAMES_PER_S:g} s, found {hop_s}; use"
            f" {' or '.join(map(str, neighbours))}"
        )
