"""Compute histograms of measures, and count values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

SHARE = "of the clip"
"""Unit of measures that are a share of the clip. The report shows them as percentages."""


@dataclass(frozen=True)
class Axis:
    """The histogram axis of a measure. Values outside its range are counted in the first or last bin."""

    label: str
    unit: str
    low: float
    high: float
    num_bins: int = 40
    is_logarithmic: bool = False
    """Show the counts on a logarithmic scale, so that rare bins remain visible next to a dominant bin."""


AXES = {
    "duration_s": Axis("Length", "s", 0, 12, 48, is_logarithmic=True),
    "loudness_lufs": Axis("Loudness (EBU R128)", "LUFS", -70, 0, 35),
    "rms_db": Axis("Level (RMS)", "dBFS", -90, 0, 45),
    "peak": Axis("Peak", "of full scale", 0, 1.25),
    "silence": Axis("Digital silence", SHARE, 0, 1, is_logarithmic=True),
    "clipping": Axis("Clipped samples", SHARE, 0, 0.1, is_logarithmic=True),
    "bandwidth_hz": Axis("Bandwidth", "Hz", 0, 8000),
    "dc": Axis("DC", "of full scale", -0.1, 0.1, is_logarithmic=True),
    "mix_db": Axis("Average of the channels, relative to them", "dB", -30, 0, 30, is_logarithmic=True),
    "bit_rate": Axis("Bit rate of the media", "bit/s", 0, 320_000),
    "media_length_s": Axis("Length of the media", "s", 0, 1200, is_logarithmic=True),
}


def compute_histogram(column: pa.ChunkedArray, axis: Axis, rows_of: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the number of known values in each bin and the median of each split, as a JSON value.

    rows_of: the rows of each split.
    """
    values = column.cast(pa.float64()).to_numpy()  # null becomes NaN
    is_known = np.isfinite(values)
    edges = np.linspace(axis.low, axis.high, axis.num_bins + 1)
    counts, _ = np.histogram(np.clip(values[is_known], axis.low, axis.high), edges)
    medians = {name: values[rows][is_known[rows]] for name, rows in rows_of.items()}
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "num_known": int(is_known.sum()),
        "medians": {name: float(np.median(known)) for name, known in medians.items() if len(known)},
    }


def count_values(column: pa.ChunkedArray) -> dict[str, int]:
    """Count how often each known value of a column occurs, with the most frequent value first."""
    counts = pd.Series(column.drop_null().to_pandas()).value_counts()
    return {str(value): int(count) for value, count in counts.items()}
