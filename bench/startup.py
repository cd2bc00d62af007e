"""Measure the cost of `--help` for each command, compared with `import torch`, which no command line should wait for.

Prints a JSON line per command: seconds of processor time and peak memory in MB, the best of three.
"""

import os
import sys
from pathlib import Path

from bench.lines import print_line

ROOT = Path(__file__).parents[1]
JOBS = sorted(file.stem for file in (ROOT / "jobs").glob("*.py") if file.stem not in ("__init__", "config"))
NUM_RUNS = 3


def measure(*arguments: str) -> tuple[float, float]:
    """Run Python several times, and return processor seconds and peak MB of the cheapest run."""
    return min(run(*arguments) for _ in range(NUM_RUNS))


def run(*arguments: str) -> tuple[float, float]:
    """Run Python without output. `wait4` returns the resource usage of this child only."""
    silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = os.posix_spawn(sys.executable, [sys.executable, *arguments], env, file_actions=silence)
    _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"python {' '.join(arguments)} failed: {os.waitstatus_to_exitcode(status)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    peer_s, peer_mb = measure("-c", "import torch")
    for job in JOBS:
        cpu_s, mb = measure(str(ROOT / "jobs" / f"{job}.py"), "--help")
        print_line(f"startup/{job}", "cpu s", cpu_s, ("import torch", peer_s), peak_mb=mb, peer_peak_mb=peer_mb)


if __name__ == "__main__":
    main()
