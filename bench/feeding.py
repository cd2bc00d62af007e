"""Find the GPU speed from which reading limits training: the share of time waiting for data, for steps of fixed length.

    python -m bench.feeding

Reads batches of 48 clips like a training (balanced draws, mixup, two threads) from a local store, alternating with
steps that only pass time: with one process, then with eight, as on a machine with eight GPUs. Prints a JSON line per
step length, and one for the time that another thread waited for Python's lock. The store is in the page cache after the
first pass, so the figures describe the loader, not the disk.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from statistics import mean
from threading import Event, Thread

import numpy as np
import torch

from ast_model.config import ASTConfig
from ast_model.data.loader import Batch
from ast_model.distributed import World
from bench.lines import print_line
from bench.stores import make_store
from bench.train_step import stored_batches
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store

BATCH_SIZE = 48
STEPS_MS = (1, 3, 10, 30, 100)
NUM_LOADERS = 8
SECONDS_PER_LENGTH = 1.5
MIN_STEPS = 8
NUM_WARM_STEPS = 4
TICK_S = 0.0005


def wait_share(batches: Iterator[Batch], step_s: float) -> tuple[float, float]:
    """Return the share of time that steps of length `step_s` wait for batches, and the samples per second."""
    for _ in range(NUM_WARM_STEPS):  # skip batches that were prefetched during slower steps
        next(batches)
    num_steps, waited_s, started = 0, 0.0, time.perf_counter()
    while num_steps < MIN_STEPS or time.perf_counter() - started < SECONDS_PER_LENGTH:
        asked = time.perf_counter()
        batch = next(batches)
        waited_s += time.perf_counter() - asked
        time.sleep(step_s)
        del batch  # free it now: returning memory to the system is not waiting for data
        num_steps += 1
    elapsed_s = time.perf_counter() - started
    return waited_s / elapsed_s, num_steps * BATCH_SIZE / elapsed_s


def load(root: str, number: int, start: Barrier, results: "Queue[list[tuple[float, float]]]") -> None:
    """Run one of several loaders, synchronised at the start of each step length."""
    torch.set_num_threads(1)
    num_gpus = torch.cuda.device_count()
    device = torch.device("cuda", number % num_gpus) if num_gpus else torch.device("cpu")
    batches = stored_batches(load_snapshot(Store(root)), ASTConfig.base(), BATCH_SIZE, World(0, 1, device))
    next(batches)
    measured = []
    for step_ms in STEPS_MS:
        start.wait()
        measured.append(wait_share(batches, step_ms / 1000))
    batches.close()
    results.put(measured)


def measure(root: str, num_loaders: int) -> list[tuple[float, float]]:
    """Return the mean waiting share and the total samples per second of all loaders, per step length."""
    # Fork from a process that has imported torch but not initialised CUDA.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.train_step"])
    start, results = context.Barrier(num_loaders), context.Queue()
    loaders = [context.Process(target=load, args=(root, number, start, results)) for number in range(num_loaders)]
    for loader in loaders:
        loader.start()
    measured = [results.get() for _ in loaders]
    for loader in loaders:
        loader.join()
    return [(mean(share for share, _ in each), sum(rate for _, rate in each)) for each in zip(*measured, strict=True)]


@contextmanager
def ticking() -> Iterator[list[float]]:
    """Run a thread that wakes every half millisecond, and collect its delays in seconds."""
    late_s: list[float] = []
    is_over = Event()

    def tick() -> None:
        while not is_over.is_set():
            slept = time.perf_counter()
            time.sleep(TICK_S)
            late_s.append(time.perf_counter() - slept - TICK_S)

    thread = Thread(target=tick)
    thread.start()
    try:
        yield late_s
    finally:
        is_over.set()
        thread.join()


def print_lock(root: str) -> None:
    """Print the delays of a thread that needs Python's lock while batches are read at full speed."""
    torch.set_num_threads(1)
    with ticking() as idle_s:
        time.sleep(SECONDS_PER_LENGTH)
    batches = stored_batches(load_snapshot(Store(root)), ASTConfig.base(), BATCH_SIZE, World(0, 1, torch.device("cpu")))
    next(batches)
    with ticking() as late_s:
        share, _ = wait_share(batches, 0.0)
    batches.close()
    assert share > 0
    for name, quantile in (("at most", 1.0), ("99 % of the time less than", 0.99)):
        late_ms, idle_ms = (1000 * float(np.quantile(each, quantile)) for each in (late_s, idle_s))
        # Python forces a thread to release the lock only after this interval.
        interval_ms = 1000 * sys.getswitchinterval()
        print_line(f"late by the lock, {name}", "ms", late_ms, without_reading=idle_ms, switch_interval=interval_ms)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as root:
        make_store(Store(root), 4, 250)
        for num_loaders in (1, NUM_LOADERS):
            of = f"{num_loaders} loaders" if num_loaders > 1 else "one loader"
            for step_ms, (share, rate) in zip(STEPS_MS, measure(root, num_loaders), strict=True):
                name = f"waiting for data, {of}, steps of {step_ms} ms"
                shown = {"samples_per_s": rate, "batch_size": BATCH_SIZE, "device": device}
                print_line(name, "of the time", share, **shown)
        print_lock(root)


if __name__ == "__main__":
    main()
