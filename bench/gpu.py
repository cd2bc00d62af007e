"""Test and benchmark training on a GPU, in under nine minutes: `make gpu`.

    python -m bench.gpu --out gpu.json

Needs only torch, torchaudio, transformers, numpy, scipy, pandas, pyarrow, fsspec, safetensors, rich and pytest. Each
part runs in a separate process with a deadline, so that parts that hang or run out of memory do not affect the rest.
Results are written to --out as they arrive. Prints a table for docs/benchmarks.md at the end. Without a GPU, skips the
parts that need one. Exits with 1 if a part failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A benchmark or test run, with results as JSON lines in its output (`bench.lines`)."""

    name: str
    command: tuple[str, ...]
    """Arguments to Python."""
    deadline_s: int
    needs_gpu: bool = True


# Without the other tests' fixtures, warning filters and plugins, which need all packages of the project.
ALONE = ("--noconftest", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default")
PYTEST = ("-m", "pytest", *ALONE, "-q", "-p", "no:cacheprovider")
ENV = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
PARTS = (
    Part("tests", (*PYTEST, "-m", "gpu", "tests/gpu"), 100),
    Part("train_step", ("-m", "bench.train_step", "--rounds", "3", "--steps", "10"), 200),
    Part("roofline", ("-m", "bench.roofline", "--compile", "auto"), 35, needs_gpu=False),
    Part("attention", ("-m", "bench.attention"), 25, needs_gpu=False),
    Part("feeding", ("-m", "bench.feeding"), 70, needs_gpu=False),
    Part("fbank", ("-m", "bench.fbank"), 20, needs_gpu=False),
    Part("memory", ("-m", "bench.memory"), 60, needs_gpu=False),
)
TO_REACH = {
    ("ours", "transformers"): 1.3,
    ("ours, compiled", "transformers, compiled"): 1.3,
    ("ours, compiled as a whole", "transformers, compiled"): 1.3,
    ("ours", "official arithmetic"): 2.0,
    ("ours, patchout", "ours"): 2.3,
    ("ours, fed", "ours"): 0.97,
    ("fbank", "torchaudio, clip by clip"): 20.0,
    ("largest micro-batch, activation checkpointing", "without"): 3.0,
}
"""Target ratio on a GPU by (name, reference)."""


def describe_machine() -> Result:
    """Describe the machine: device, driver, and the library versions that select kernels."""
    machine: Result = {"torch": torch.__version__, "device": "none", "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine


def run_part(part: Part, on_line: Callable[[str], None]) -> Result:
    """Run a part to its end or deadline, and report each line as it arrives. Returns the outcome."""
    started, is_late = time.perf_counter(), False

    def end() -> None:
        nonlocal is_late
        is_late = True
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # includes its compilers and readers

    command, out = [sys.executable, *part.command], subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=ENV, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        timer = Timer(part.deadline_s, end)
        timer.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                on_line(line.rstrip())
            code = process.wait()
        finally:
            timer.cancel()
    status = "ended at its deadline" if is_late else "done" if code == 0 else f"failed with exit code {code}"
    return {"part": part.name, "status": status, "seconds": round(time.perf_counter() - started, 1)}


class Report:
    """Results so far, in a file that is replaced atomically."""

    def __init__(self, file: Path, machine: Result):
        self.file = file
        self.content: Result = {"machine": machine, "parts": [], "results": []}
        self._write()

    def add_line(self, part: str, line: str) -> None:
        print(line, flush=True)
        result = _parse(line)
        if result is not None:
            self.content["results"].append({"part": part, **result})
            self._write()

    def add_part(self, outcome: Result) -> None:
        print(f"{outcome['part']}: {outcome['status']} after {outcome['seconds']} s", flush=True)
        self.content["parts"].append(outcome)
        self._write()

    def _write(self) -> None:
        written = self.file.with_suffix(".part")
        written.write_text(json.dumps(self.content, indent=1))
        written.replace(self.file)


def _parse(line: str) -> Result | None:
    if not line.startswith('{"name"'):
        return None
    try:
        return json.loads(line)
    except json.JSONDecodeError:  # cut off by the deadline
        return None


def markdown_table(results: list[Result]) -> str:
    """Format the results as the table of docs/benchmarks.md."""
    lines = ["| measure | figure | reference | ratio | target |", "|---|---|---|---|---|"]
    shown = {"part", "name", "unit", "figure", "peer", "peer_figure", "ratio"}
    for result in results:
        extra = ", ".join(f"{name} {value}" for name, value in result.items() if name not in shown)
        figure = f"{result['figure']} {result['unit']}" + (f" ({extra})" if extra else "")
        peer = f"{result['peer']}: {result['peer_figure']}" if "peer" in result else ""
        goal = TO_REACH.get((result["name"], result.get("peer", "")), "")
        lines.append(f"| {result['name']} | {figure} | {peer} | {result.get('ratio', '')} | {goal} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="output file")
    parser.add_argument("--parts", default="", help=f"some of {','.join(part.name for part in PARTS)}; default: all")
    args = parser.parse_args()
    names = args.parts.split(",") if args.parts else [part.name for part in PARTS]
    if unknown := set(names) - {part.name for part in PARTS}:
        parser.error(f"expected parts of {', '.join(part.name for part in PARTS)}, found {', '.join(sorted(unknown))}")
    has_gpu = torch.cuda.is_available()
    report = Report(args.out, describe_machine())
    print(json.dumps(report.content["machine"]), flush=True)
    for part in PARTS:
        if part.name not in names:
            continue
        if part.needs_gpu and not has_gpu:
            report.add_part({"part": part.name, "status": "skipped without a GPU", "seconds": 0})
        else:
            if not has_gpu:  # CPUs are slow, and without a GPU the time is not limited
                part = replace(part, deadline_s=4 * part.deadline_s)
            report.add_part(run_part(part, partial(report.add_line, part.name)))
    print(markdown_table(report.content["results"]))
    if not has_gpu:
        print("Parts that need a GPU were skipped; run this on a machine with a GPU to fill them.")
    sys.exit(any("failed" in part["status"] or "deadline" in part["status"] for part in report.content["parts"]))


if __name__ == "__main__":
    main()
