"""An uploaded sound: features, windows and spectrogram."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch

from ast_model.inference import window_starts
from pipeline.audio.decode import decode_file
from pipeline.errors import ConfigError, InputError
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import FRAME_LENGTH_MS, FRAME_SHIFT_MS, FRAMES_PER_S
from pipeline.page import spectrogram_url

MAX_PIXELS = 2_000
"""Maximum width of a spectrogram. Longer sounds have several frames per pixel."""


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """The features of a sound."""

    fbank_TM: np.ndarray
    """float32, neither padded nor normalised."""

    @property
    def length_s(self) -> float:
        return (FRAME_LENGTH_MS + (len(self.fbank_TM) - 1) * FRAME_SHIFT_MS) / 1000


@dataclass(frozen=True, order=True, slots=True)
class Window:
    """An interval of a sound in frames."""

    start: int
    stop: int

    @property
    def start_s(self) -> float:
        return self.start / FRAMES_PER_S


def read_sound(content: bytes, max_s: float) -> Sound:
    """Decode the bytes of a media file, at most `max_s` long. Raises InputError."""
    if not content:
        raise InputError("expected the bytes of a sound file as the body of the request, found an empty body")
    waveform_S = decode_file(content, round(max_s * 1000))
    return Sound(compute_fbank(torch.from_numpy(waveform_S)).numpy())


def cut_windows(sound: Sound, window: int, hop: int, max_windows: int) -> list[Window]:
    """Cut windows every `hop` frames. Raises ConfigError for more than `max_windows`."""
    num_frames = len(sound.fbank_TM)
    # Count before cutting: a hop of 10 ms on a long sound would be much work for one request.
    num_windows = 1 + max(0, -(-(num_frames - window) // hop))
    if num_windows > max_windows:
        raise ConfigError(
            f"expected at most {max_windows} windows, found {num_windows} in {sound.length_s:.1f} s with a hop of"
            f" {hop / FRAMES_PER_S:g} s: set a longer hop_s, or send a shorter sound"
        )
    return [Window(start, min(start + window, num_frames)) for start in window_starts(num_frames, window, hop)]


def pool(values_WX: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Return the mean over windows (X,), weighted by the filled share of each, as `Tagger` does."""
    filled = [window.stop - window.start for window in windows]
    return np.average(values_WX, axis=0, weights=filled).astype(np.float32)


def draw_spectrogram(sound: Sound) -> str:
    """Draw the features as a PNG data URL, at most `MAX_PIXELS` wide, low frequencies at the bottom."""
    return spectrogram_url(sound.fbank_TM, frames_per_pixel=ceil(len(sound.fbank_TM) / MAX_PIXELS))
