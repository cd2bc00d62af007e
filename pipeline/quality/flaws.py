"""Find clips that may be defective, using conditions on their measures."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.quality.selection import find_matches, parse_expression

SILENT_SHARE = 0.99
"""Share of silence above which a clip counts as silent. Many data sets pad short sounds with zeros. A bark of half a
second in a clip of five seconds has a share of 0.9."""


@dataclass(frozen=True)
class Flaw:
    """A possible defect of a clip, defined by a condition."""

    label: str
    expression: str
    """The condition, as `--data.exclude` accepts it."""
    worst: str
    """The column that ranks the clips from worst to best."""
    sign: int
    """1 if high values are bad, −1 if low values are bad."""


FLAWS = (
    Flaw("Silent", f"silence > {SILENT_SHARE}", "silence", 1),
    Flaw("Clipped", "clipping > 0.01", "clipping", 1),
    Flaw("Hardly audible", f"loudness_lufs < -50 and silence <= {SILENT_SHARE}", "loudness_lufs", -1),
    Flaw("Narrow-band", "bandwidth_hz < 4500", "bandwidth_hz", -1),
    Flaw("Positive DC", "dc > 0.02", "dc", 1),
    Flaw("Negative DC", "dc < -0.02", "dc", -1),
    Flaw("Channels that cancel each other", "mix_db < -20", "mix_db", -1),
    Flaw("Short", "duration_s < 3", "duration_s", -1),
)


def find_flaws(values: Mapping[str, pa.ChunkedArray]) -> dict[str, np.ndarray]:
    """Return a mask (N,) of the affected clips for each flaw, by the flaw's label."""
    return {flaw.label: find_matches(parse_expression(flaw.expression), values) for flaw in FLAWS}
