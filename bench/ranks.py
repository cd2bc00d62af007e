"""Measure the gain of a second worker, the overhead of Ray Train over torchrun, and the cost of a killed worker.

    python -m bench.ranks

Runs the same training four times, with one thread per rank: one rank under torchrun, two ranks under torchrun, two
workers of Ray Train, and two workers with one of them killed after the first epoch. Prints JSON lines: samples per
second, seconds per epoch (median without the first epoch, with evaluation), total seconds. For two idle cores.

The demo's model is so small (60 MFLOP per clip) that reading, which a single rank leaves to the other core, and
communication dominate its steps of 57 ms. So the gain is also measured with a larger model (860 MFLOP; AST-base has
261,000).
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from mlflow.tracking import MlflowClient

from ast_model.checkpoints.checkpoint import list_checkpoints
from bench.lines import print_line
from bench.stores import make_store
from pipeline.store.storage import Store

NUM_EPOCHS, NUM_STEPS, BATCH_SIZE = 4, 60, 16
LARGER = f"""--model.width 192 --model.depth 4 --model.num-heads 3 --model.patch-freq 32 --model.freq-stride 32
    --train.draws-per-epoch {20 * BATCH_SIZE}""".split()
TRAIN = f"""--train.num-epochs {NUM_EPOCHS} --train.draws-per-epoch {NUM_STEPS * BATCH_SIZE}
    --train.global-batch-size {BATCH_SIZE} --train.micro-batch-size 8
    --train.train-splits balanced_train --train.eval-split balanced_train --train.sampler balanced
    --train.average-last-epochs 0 --train.allow-empty-classes""".split()


def train(root: Path, launcher: list[str], flags: list[str], kill_one: bool = False) -> dict[str, Any]:
    """Train in a separate process, and return the figures."""
    store = Store(str(root))
    known = set(store.list("runs", "/run.json"))
    command = [*launcher, "jobs/train.py", "demo", "--root", str(root), *TRAIN, *flags]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if kill_one:
        threading.Thread(target=kill_a_worker, args=(process.pid, store, known), daemon=True).start()
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(errors.decode())
    seconds = time.perf_counter() - started
    (record,) = set(store.list("runs", "/run.json")) - known
    client = MlflowClient(f"sqlite:///{store.path('mlflow.db')}")
    run_id = store.read_json(record)["tracking_run"]
    ends_ms = sorted(metric.timestamp for metric in client.get_metric_history(run_id, "train/epoch_loss"))
    rates = [metric.value for metric in client.get_metric_history(run_id, "system/samples_per_s")]
    epoch_s = median((after - before) / 1000 for before, after in pairwise(ends_ms))
    return {"epoch_s": round(epoch_s, 2), "samples_per_s": round(median(rates), 1), "all_s": round(seconds, 1)}


def kill_a_worker(driver: int, store: Store, known: set[str]) -> None:
    """Kill one of the workers after the first epoch's checkpoint of a new run."""
    while True:
        new = set(store.list("runs", "/run.json")) - known
        if any(list_checkpoints(store, name.replace("run.json", "checkpoints")) for name in new):
            break
        time.sleep(0.2)
    for process in psutil.Process(driver).children(recursive=True):
        if any("RayTrainWorker" in part for part in process.cmdline()):
            process.send_signal(signal.SIGKILL)
            return


def main() -> None:
    python = sys.executable
    torchrun = [str(Path(python).with_name("torchrun")), "--standalone"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_store(Store(folder), num_shards=1, clips_per_shard=100)
        lines = {
            "torchrun, 1 rank": train(root, [*torchrun, "--nproc-per-node=1"], []),
            "torchrun, 2 ranks": train(root, [*torchrun, "--nproc-per-node=2"], []),
            "torchrun, 1 rank, larger": train(root, [*torchrun, "--nproc-per-node=1"], LARGER),
            "torchrun, 2 ranks, larger": train(root, [*torchrun, "--nproc-per-node=2"], LARGER),
            "Ray Train, 2 workers": train(root, [python], ["--workers", "2"]),
            "Ray Train, 2 workers, one killed": train(root, [python], ["--workers", "2"], kill_one=True),
        }
    one, two, one_larger, two_larger, ray, killed = lines.values()
    for model, single, both in (("demo's model", one, two), ("larger model", one_larger, two_larger)):
        print_line(f"two ranks, {model}", "samples/s", both["samples_per_s"], ("one rank", single["samples_per_s"]))
    print_line("Ray Train, an epoch", "s", ray["epoch_s"], ("torchrun", two["epoch_s"]))
    print_line(
        "with a killed worker", "s", killed["all_s"], ("without", ray["all_s"]), lost_s=killed["all_s"] - ray["all_s"]
    )


if __name__ == "__main__":
    main()
