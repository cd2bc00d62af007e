"""Cut a recording's features into windows, and pool results over windows.

Axes: T frames, M mel bins, W windows, X scores or embedding.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from ast_model.tagging.options import TaggingOptions
from pipeline.errors import ConfigError
from pipeline.fbank_settings import (
    FRAME_LENGTH_MS,
    FRAME_SHIFT_MS,
    FRAMES_PER_S,
    NUM_MEL_BINS,
    SAMPLE_RATE_HZ,
    num_frames_of,
)


@dataclass(frozen=True, order=True, slots=True)
class Window:
    """An interval of features, in frames."""

    start: int
    stop: int

    @property
    def num_frames(self) -> int:
        return self.stop - self.start

    @property
    def start_s(self) -> float:
        return self.start / FRAMES_PER_S


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Length and hop of windows. Only the last window of a recording reaches its end, and it may be shorter."""

    num_frames: int
    hop: int
    window_s: float
    """Requested length in seconds, used for the intervals of tags."""

    @classmethod
    def without_overlap(cls, num_frames: int) -> "WindowGrid":
        return cls(num_frames, num_frames, num_frames / FRAMES_PER_S)

    def cut(self, num_frames: int, max_windows: int | None = None) -> list[Window]:
        """Return the windows of a recording. Raises ConfigError for more than `max_windows`."""
        # Count before cutting, because a hop of 10 ms would give a huge list for a long recording.
        num_windows = ceil(min(max(num_frames - self.num_frames, 0) + self.hop, num_frames) / self.hop)
        if max_windows is not None and num_windows > max_windows:
            raise ConfigError(
                f"expected at most {max_windows} windows, found {num_windows} in {seconds_of_frames(num_frames):.1f} s"
                f" with a hop of {self.hop / FRAMES_PER_S:g} s: set a longer hop_s, or use a shorter recording"
            )
        starts = [number * self.hop for number in range(num_windows)]
        return [Window(start, min(start + self.num_frames, num_frames)) for start in starts]

    def stream(self, fbanks: Iterable[Tensor]) -> Iterator[tuple[Window, Tensor]]:
        """Cut streamed features (t, M) into the windows of `cut`; yield each with its frames (T, M)."""
        buffer_TM = torch.zeros(0, NUM_MEL_BINS)
        first = start = 0  # first frame of the buffer; first frame of the next window
        num_covered = num_frames = 0
        for fbank_TM in fbanks:
            buffer_TM = torch.cat([buffer_TM, fbank_TM])
            num_frames = first + len(buffer_TM)
            while (stop := start + self.num_frames) <= num_frames:
                yield Window(start, stop), buffer_TM[start - first : stop - first]
                num_covered, start = stop, start + self.hop
            num_used = min(start - first, len(buffer_TM))
            first, buffer_TM = first + num_used, buffer_TM[num_used:]
        if num_covered < num_frames and start < num_frames:
            yield Window(start, num_frames), buffer_TM[start - first :]


def plan_grid(max_frames: int, options: TaggingOptions) -> WindowGrid:
    """Convert the window and the hop from seconds to frames. Raises ConfigError for windows longer than the model's.

    max_frames: length of the model's window, which is the default.
    """
    window_s = max_frames / FRAMES_PER_S if options.window_s is None else options.window_s
    num_frames = max_frames if options.window_s is None else num_frames_of(round(window_s * SAMPLE_RATE_HZ))
    if not 1 <= num_frames <= max_frames:
        raise ConfigError(
            f"expected window_s between 0.025 and the model's {max_frames / FRAMES_PER_S} s, found {window_s}"
        )
    hop = max(1, num_frames // 2) if options.hop_s is None else round(options.hop_s * FRAMES_PER_S)
    return WindowGrid(num_frames, hop, window_s)


class WindowMean:
    """Running mean of values over a recording's windows, weighted by their numbers of frames."""

    def __init__(self) -> None:
        self._sum_X: np.ndarray = np.zeros(())
        self._num_frames = 0

    def add(self, values_X: np.ndarray, window: Window) -> None:
        self._sum_X = self._sum_X + values_X.astype(np.float64) * window.num_frames
        self._num_frames += window.num_frames

    def mean(self) -> np.ndarray:
        """Return the mean (X,) float32."""
        return (self._sum_X / self._num_frames).astype(np.float32)


def pool_windows(values_WX: Iterable[np.ndarray], windows: Sequence[Window]) -> np.ndarray:
    """Return the `WindowMean` (X,) over all windows of a recording."""
    pooled = WindowMean()
    for values_X, window in zip(values_WX, windows, strict=True):
        pooled.add(values_X, window)
    return pooled.mean()


def seconds_of_frames(num_frames: int) -> float:
    """Return the seconds of audio that this number of frames covers."""
    return (FRAME_LENGTH_MS + (num_frames - 1) * FRAME_SHIFT_MS) / 1000
