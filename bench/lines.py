"""Output of benchmarks: one JSON line with a figure, its peer and their ratio. Also the peak memory of a process."""

import json
import re
from pathlib import Path
from typing import Any


def print_line(name: str, unit: str, figure: float, peer: tuple[str, float] | None = None, **rest: Any) -> None:
    """Print a figure and, with a peer, the peer's name, its figure in the same unit, and our figure divided by it."""
    line: dict[str, Any] = {"name": name, "unit": unit, "figure": _rounded(figure)}
    if peer:
        line |= {"peer": peer[0], "peer_figure": _rounded(peer[1]), "ratio": round(figure / peer[1], 3)}
    rounded = {key: _rounded(value) if isinstance(value, float) else value for key, value in rest.items()}
    print(json.dumps(line | rounded), flush=True)


def peak_mb() -> float:
    """Return the peak memory of this process in MiB. `ru_maxrss` would include the parent's peak."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def _rounded(figure: float) -> float:
    """Round to four significant digits, or to an integer above 1,000."""
    return float(f"{figure:.4g}") if abs(figure) < 1000 else round(figure)
