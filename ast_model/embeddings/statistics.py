"""Spectral statistics of clips, a simple description of their sound that needs no model.

Axes: T frames, M mel bins, K cepstral coefficients, B bands, F features.
"""

import numpy as np
from scipy.fft import dct

from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot

STATISTICS_VERSION = 1
"""Version of the features. Stored statistics of other versions are ignored."""
NUM_CEPSTRAL, NUM_BANDS = 40, 32
QUANTILES = (0.1, 0.5, 0.9)


def spectral_statistics(fbank_TM: np.ndarray) -> np.ndarray:
    """Return statistics over time (F,) of cepstral coefficients and their changes, and quantiles of mel bands."""
    cepstrum_TK = np.asarray(dct(fbank_TM, axis=1, norm="ortho"))[:, :NUM_CEPSTRAL]
    changes_TK = np.diff(cepstrum_TK, axis=0, prepend=cepstrum_TK[:1])
    bands_TB = fbank_TM.reshape(len(fbank_TM), NUM_BANDS, -1).mean(axis=2)
    return np.concatenate(
        [
            cepstrum_TK.mean(axis=0),
            cepstrum_TK.std(axis=0),
            np.abs(changes_TK).mean(axis=0),
            changes_TK.std(axis=0),
            np.quantile(bands_TB, QUANTILES, axis=0).ravel(),
        ]
    )


def read_fbank(reader: ClipReader, snapshot: Snapshot, row: int) -> np.ndarray:
    """Return the fbank (T, M) float32 of a clip."""
    fbank_TM = np.empty((snapshot.index["num_frames"][row].as_py(), NUM_MEL_BINS), np.float16)
    reader.read_fbank(row, fbank_TM)
    return fbank_TM.astype(np.float32)
