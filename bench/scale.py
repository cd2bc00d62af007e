"""Measure the orchestration of AudioSet's 2,084,320 segments, with fetch, decode and fbank replaced by a stub.

Plans shards, schedules them on Ray, writes and reads sidecars, builds the snapshot, reruns without missing clips and
queries the status. Prints one JSON line: the driver's CPU time per clip, seconds per step and peak memory. No peer.

    python -m bench.scale
    python -m bench.scale --shares 0.1 1 10      0.2, 2 and 20 million; an hour, 20 GB of memory

With several shares, also prints the growth of the driver's cost per segment from each share to the next.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import pipeline.preprocess
from bench.lines import peak_mb, print_line
from jobs.preprocessing.commands import status
from jobs.preprocessing.settings import StatusCommand
from pipeline.cluster.session import ray_session
from pipeline.config import PreprocessConfig
from pipeline.convert import Conversion
from pipeline.preprocess import preprocess
from pipeline.records import Reason, ShardPlan, ShardReport
from pipeline.shards.checksum import Checksum
from pipeline.shards.format import SidecarRow, write_sidecar
from pipeline.sources.rate_limit import Wait
from pipeline.store.storage import Store

SPLITS = {"balanced_train": 22_160, "unbalanced_train": 2_041_789, "eval": 20_371}
NUM_CLASSES = 527
YIELD = 0.8
FBANK_BYTES = 255_616
R = TypeVar("R")


def write_metadata(folder: Path, share: float) -> int:
    """Write tables in the official format with synthetic ids; return the number of segments."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    mids = [f"/m/{number:06x}" for number in range(NUM_CLASSES)]
    rows = [f'{index},{mid},"name {index}"\n' for index, mid in enumerate(mids)]
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n" + "".join(rows))
    frequency = 1 / np.arange(1, NUM_CLASSES + 1)
    combinations = [
        ",".join(
            mids[index] for index in set(random.choice(NUM_CLASSES, 1 + number % 4, p=frequency / frequency.sum()))
        )
        for number in range(50_000)
    ]
    total = 0
    for split, count in SPLITS.items():
        count = round(count * share)
        with (folder / f"{split}_segments.csv").open("w") as file:
            file.write(f"# synthetic\n# num_segs={count}\n# YTID, start_seconds, end_seconds, positive_labels\n")
            for number, chosen, start in zip(
                range(total, total + count),
                random.integers(len(combinations), size=count),
                random.integers(600, size=count),
                strict=True,
            ):
                file.write(f'{number:011x}, {start}.000, {start + 10}.000, "{combinations[chosen]}"\n')
        total += count
    return total


def write_rows(plan: ShardPlan, conversion: Conversion) -> ShardReport | Wait:
    """Publish a shard's sidecar with plausible rows, without a tar."""
    random = np.random.default_rng(len(plan.shard.shard_id))
    rows = []
    for place, segment in enumerate(plan.segments):
        is_written = random.random() < YIELD
        outcome: dict[str, Any] = {
            "status": "written" if is_written else "failed",
            "reason": "" if is_written else Reason.NOT_FOUND,
        }
        content: dict[str, Any] = {
            "num_frames": 998,
            "fbank_offset": place * FBANK_BYTES,
            "fbank_bytes": FBANK_BYTES,
            "digest": "0" * 64,
        }
        content |= {"fbank_sum": -5e5, "fbank_sum_squares": 4e6}
        rows.append(
            SidecarRow(
                key=segment.key,
                **asdict(segment),
                **outcome,
                attempts=1,
                source="stub",
                **(content if is_written else {}),
            )
        )
    name = plan.shard.sidecar
    write_sidecar(conversion.store, name, rows, conversion.fingerprint, Checksum(len(rows) * FBANK_BYTES, "0" * 64))
    num_written = sum(row.status == "written" for row in rows)
    failures = {Reason.NOT_FOUND: len(rows) - num_written}
    return ShardReport(plan.shard, len(rows), num_written, failures, 0, is_new=True)


class NoSource:
    def fetch(self, segment, proxy=None):
        raise AssertionError("the stub fetches nothing")


def timed(function: Callable[[], R]) -> tuple[tuple[float, float], R]:
    """Return this process's (wall, CPU) seconds and the result."""
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function()
    return (time.perf_counter() - start, time.process_time() - cpu_start), result


def measure(share: float, folder: Path) -> dict[str, float]:
    """Return the driver's wall seconds, CPU seconds and peak memory for each step."""
    shutil.rmtree(folder, ignore_errors=True)
    with ProcessPoolExecutor(1) as pool:  # a separate process, to keep its memory out of the driver's
        num_segments = pool.submit(write_metadata, folder / "csv", share).result()
    store = Store(str(folder.absolute() / "store"))
    config = PreprocessConfig(metadata=str(folder / "csv"), media=("stub",))
    pipeline.preprocess.convert_shard = write_rows
    pipeline.preprocess.open_sources = lambda config: [NoSource()]
    figures: dict[str, float] = {"num_segments": num_segments, "peak_mb_before": peak_mb()}
    build = pipeline.preprocess.build_snapshot
    snapshot_s: list[tuple[float, float]] = []
    peaks: list[float] = []

    def build_timed(*parts):
        peaks.append(peak_mb())
        seconds, snapshot = timed(lambda: build(*parts))
        snapshot_s.append(seconds)
        return snapshot

    pipeline.preprocess.build_snapshot = build_timed
    with ray_session(num_cpus=2):
        first_s, (snapshot, report) = timed(lambda: preprocess(config, store))
    idle_s, (again, idle_report) = timed(lambda: preprocess(config, store))
    assert report.num_decided == num_segments
    assert (idle_report.num_planned, again.snapshot_id) == (0, snapshot.snapshot_id)
    with redirect_stdout(io.StringIO()):
        status_s, _ = timed(lambda: status(StatusCommand(store.root, config)))
    orchestration_s = tuple(whole - part for whole, part in zip(first_s, snapshot_s[0], strict=True))
    steps = {"first_run": orchestration_s, "snapshot": snapshot_s[0], "idle_rerun": idle_s, "status": status_s}
    for name, (wall_s, cpu_s) in steps.items():
        figures |= {f"{name}_s": wall_s, f"{name}_cpu_s": cpu_s}
    figures |= {"peak_mb_orchestration": peaks[0], "peak_mb_with_snapshot": peak_mb()}
    shutil.rmtree(folder)
    return figures


def growth(small: Mapping[str, float], large: Mapping[str, float]) -> dict[str, float]:
    """Return the ratio of the costs per segment of the larger and the smaller run, by step; memory excludes imports."""

    def per_segment(run: Mapping[str, float], name: str) -> float:
        value = run["peak_mb_with_snapshot"] - run["peak_mb_before"] if name == "memory" else run[f"{name}_cpu_s"]
        return value / run["num_segments"]

    names = ("first_run", "snapshot", "idle_rerun", "status", "memory")
    return {name: per_segment(large, name) / per_segment(small, name) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[1.0], help="shares of AudioSet's segments, ascending"
    )
    parser.add_argument("--folder", type=Path, default=Path("data/bench-scale"))
    arguments = parser.parse_args()
    if len(arguments.shares) == 1:
        figures = measure(arguments.shares[0], arguments.folder)
        driver_ms = 1000 * figures["first_run_cpu_s"] / figures["num_segments"]
        print_line("scale", "ms of the driver's CPU per clip", driver_ms, peer=None, **figures)
        return
    runs = []
    for share in arguments.shares:  # in separate processes, so that peaks are independent
        command = [sys.executable, "-m", "bench.scale", "--shares", str(share), "--folder", str(arguments.folder)]
        line = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        print(line, flush=True)
        runs.append(json.loads(line))
    for small, large in pairwise(runs):
        times = growth(small, large)
        print_line("largest growth of the cost per segment", "times", max(times.values()), peer=None, **times)


if __name__ == "__main__":
    main()
