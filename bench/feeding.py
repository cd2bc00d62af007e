"""Find from which speed on reading limits a GPU: the share of waiting for data with steps of a fixed length.

    python -m bench.feeding

Reads batches of 48 clips as a training does (balanced draws, mixup, two threads) from a local store, in turns with a
step that only passes time. Prints a JSON line for each length of a step. The store's pages are in memory after the
first pass, so the figures are the loader's, not the disk's.
"""

import tempfile
import time
from collections.abc import Iterator

import torch

from ast_model.config import ASTConfig
from ast_model.data.loader import Batch
from ast_model.distributed import World
from bench.lines import print_line
from bench.stores import make_store
from bench.train_step import stored_batches
from pipeline.store.storage import Store

BATCH_SIZE = 48
STEPS_MS = (1, 3, 10, 30, 100)
SECONDS_PER_LENGTH = 3.0
NUM_WARM_STEPS = 10


def wait_share(batches: Iterator[Batch], step_s: float) -> float:
    """Return which part of the time a step of `step_s` waits for its batch."""
    num_steps = max(10, min(100, int(SECONDS_PER_LENGTH / step_s)))
    for _ in range(NUM_WARM_STEPS):  # what was read ahead during the slower steps before does not count
        next(batches)
    waited_s, started = 0.0, time.perf_counter()
    for _ in range(num_steps):
        asked = time.perf_counter()
        next(batches)
        waited_s += time.perf_counter() - asked
        time.sleep(step_s)
    return waited_s / (time.perf_counter() - started)


def main() -> None:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        snapshot = make_store(Store(folder), 4, 250)
        batches = stored_batches(snapshot, ASTConfig.base(), BATCH_SIZE, World(0, 1, device))
        for step_ms in STEPS_MS:
            share = wait_share(batches, step_ms / 1000)
            rate = (1 - share) * BATCH_SIZE / step_ms * 1000
            name = f"waiting for data, steps of {step_ms} ms"
            print_line(name, "of the time", share, samples_per_s=rate, batch_size=BATCH_SIZE, device=device.type)
        batches.close()


if __name__ == "__main__":
    main()
