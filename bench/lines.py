"""The JSON line that a benchmark prints: a figure, the peer that ran beside it in the same run, and their ratio.

And the peak memory, which several of them measure.
"""

import json
import re
from pathlib import Path
from typing import Any


def print_line(name: str, unit: str, figure: float, peer: tuple[str, float] | None = None, **rest: Any) -> None:
    """Print a figure; with a peer, also its name, its figure in the same unit, and ours divided by its."""
    line: dict[str, Any] = {"name": name, "unit": unit, "figure": _rounded(figure)}
    if peer:
        line |= {"peer": peer[0], "peer_figure": _rounded(peer[1]), "ratio": round(figure / peer[1], 3)}
    rounded = {key: _rounded(value) if isinstance(value, float) else value for key, value in rest.items()}
    print(json.dumps(line | rounded), flush=True)


def peak_mb() -> float:
    """Return the most memory that this process has held. Not `ru_maxrss`: a child starts with its parent's."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def _rounded(figure: float) -> float:
    """Keep four digits, and all before the point."""
    return float(f"{figure:.4g}") if abs(figure) < 1000 else round(figure)
