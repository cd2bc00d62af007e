"""Mix channels down to one."""

import numpy as np


def mix_channels(samples_CS: np.ndarray) -> np.ndarray:
    """Mix samples (C, S) of any type down to (S,) float32 in [-1, 1]."""
    # Floats may be NaN or infinite, which `decode` refuses.
    with np.errstate(over="ignore", invalid="ignore"):
        mono = np.array(samples_CS[0], np.float32)
        for channel in samples_CS[1:]:
            mono += channel
        if len(samples_CS) > 1:
            mono /= len(samples_CS)
    if samples_CS.dtype.kind == "u":
        return mono / 128 - 1
    if samples_CS.dtype.kind == "i":
        return mono / (1 << (8 * samples_CS.itemsize - 1))
    return mono
