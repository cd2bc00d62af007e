"""Mix channels to mono."""

from math import log10

import numpy as np

CANCELLED_DB = -20.0
"""Level of the average relative to the channels below which they cancel each other. Unrelated channels stay above −18
dB for any number of channels."""
MIN_SHARE = 1e-12
QUIET_SHARE = 0.25
"""A channel with less than this share of the loudest channel's power counts as quiet."""


class ChannelMixer:
    """Averages the channels of consecutive blocks.

    If channels cancel each other, as in a stereo recording with one inverted channel, the average would be silent. The
    mix is then the first channel that is not quiet.
    """

    def __init__(self) -> None:
        self._energy = self._mean_energy = 0.0

    @property
    def mix_db(self) -> float | None:
        """Level of the average relative to the level of the channels, over all blocks, in dB. None for silence."""
        return _relative_db(self._energy, self._mean_energy)

    def mix(self, samples_CS: np.ndarray) -> np.ndarray:
        """Mix samples (C, S) of any type down to float32 samples (S,) in [-1, 1]."""
        # Floats may be NaN or infinite, which `decode` rejects.
        with np.errstate(over="ignore", invalid="ignore"):
            mono = self._mix(samples_CS)
        if samples_CS.dtype.kind == "u":
            return mono / 128 - 1
        if samples_CS.dtype.kind == "i":
            return mono / (1 << (8 * samples_CS.itemsize - 1))
        return mono

    def _mix(self, samples_CS: np.ndarray) -> np.ndarray:
        mono = np.array(samples_CS[0], np.float32)
        if len(samples_CS) == 1 or not mono.size:
            return mono
        for channel in samples_CS[1:]:
            mono += channel
        mono /= len(samples_CS)
        energies_C = [_energy(channel) for channel in samples_CS]
        energy, mean_energy = _energy(mono), sum(energies_C) / len(energies_C)
        self._energy += energy
        self._mean_energy += mean_energy
        mix_db = _relative_db(energy, mean_energy)
        if mix_db is None or mix_db >= CANCELLED_DB:
            return mono
        is_loud = [each >= max(energies_C) * QUIET_SHARE for each in energies_C]
        return np.array(samples_CS[is_loud.index(True)], np.float32)


def _energy(samples_S: np.ndarray) -> float:
    """Return the sum of squares after removing the mean."""
    samples_S = samples_S.astype(np.float32, copy=False)
    return max(float(np.dot(samples_S, samples_S)) - len(samples_S) * float(samples_S.mean()) ** 2, 0.0)


def _relative_db(energy: float, reference: float) -> float | None:
    if not reference > 0:
        return None
    return 10 * log10(max(energy / reference, MIN_SHARE))
