"""Options of tagging. Imports no PyTorch, because command lines inherit these settings."""

import math
from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TaggingOptions:
    """Selection of tags, shared by jobs/predict.py, the service and `Tagger`."""

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
        if isinstance(self.top_k, int) and self.top_k < 1:
            raise ConfigError(f"top_k must be at least 1, found {self.top_k}")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold must be between 0 and 1, found {self.threshold}")
        for name in ("window_s", "hop_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise ConfigError(f"{name} must be above 0 and finite, found {seconds}")
