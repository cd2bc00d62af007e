"""A spectrogram of bounded width for recordings of any length.

Axes: T columns, M mel bins.
"""

import numpy as np

from pipeline.fbank_settings import NUM_MEL_BINS

MAX_COLUMNS = 2_048


class Spectrogram:
    """Averages features over groups of frames. The size of the groups doubles whenever the width is reached."""

    def __init__(self) -> None:
        self.frames_per_column = 1
        self.columns_TM = np.zeros((0, NUM_MEL_BINS), np.float32)
        self._rest = self.columns_TM

    def add(self, fbank_TM: np.ndarray) -> None:
        """Append frames. Frames that do not fill a column are kept for the next call."""
        frames_TM = np.concatenate([self._rest, fbank_TM])
        whole = len(frames_TM) // self.frames_per_column * self.frames_per_column
        self._rest = frames_TM[whole:]
        self.columns_TM = np.concatenate([self.columns_TM, _average(frames_TM[:whole], self.frames_per_column)])
        while len(self.columns_TM) > MAX_COLUMNS:
            # Put an odd last column back among the frames that are not averaged yet.
            even = len(self.columns_TM) // 2 * 2
            odd = np.repeat(self.columns_TM[even:], self.frames_per_column, axis=0)
            self._rest = np.concatenate([odd, self._rest])
            self.columns_TM = _average(self.columns_TM[:even], 2)
            self.frames_per_column *= 2


def _average(frames_TM: np.ndarray, num: int) -> np.ndarray:
    return frames_TM.reshape(-1, num, NUM_MEL_BINS).mean(axis=1)
