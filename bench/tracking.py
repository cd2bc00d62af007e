"""Measure the cost of tracking: the start of a run, and a small training with and without tracking, in turns.

python -m bench.tracking

Prints two JSON lines: seconds to start a run in a new and in an existing database, and CPU seconds of the training.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from ast_model import recipes
from ast_model.model import AST
from ast_model.tracking import delivery as tracking_delivery
from ast_model.tracking.run import TrackedRun, start_run
from bench.lines import print_line
from pipeline.store.storage import Store

NUM_ROUNDS, NUM_STEPS = 4, 60
LINE = {f"train/metric_{n}": 0.5 for n in range(8)}
Log = Callable[[Mapping[str, float], int], None]


def train(log: Log) -> None:
    """Train with the demo's recipe, and log at its interval."""
    config = recipes.demo()
    torch.manual_seed(0)
    model = AST(config.model)
    optimizer = torch.optim.Adam(model.parameters())
    fbank_BTM = torch.randn(config.train.global_batch_size, config.model.num_frames, config.model.num_mel_bins)
    targets_BC = torch.rand(len(fbank_BTM), config.model.num_classes).round()
    for step in range(NUM_STEPS):
        loss = nn.functional.binary_cross_entropy_with_logits(model(fbank_BTM), targets_BC)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % config.train.log_every_steps == 0:
            log(LINE, step)


def measure_cpu_s(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def start(store: Store) -> tuple[TrackedRun, float]:
    started = time.perf_counter()
    return start_run(store, "bench", {}), time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tracking_delivery.QUEUES = Path(folder) / "queues"
        store = Store(folder)
        run, new_s = start(store)
        run.end("FINISHED")
        tracked, again_s = start(store)
        print_line("start, new database", "s", new_s, ("existing database", again_s))
        own_s, peer_s = [], []
        tracked.log_metrics(LINE, 0)  # the first event also reads the server's steps
        train(lambda line, step: None)
        for number in range(NUM_ROUNDS):

            def log(line: Mapping[str, float], step: int, first: int = number * NUM_STEPS + 1) -> None:
                tracked.log_metrics(line, first + step)

            def train_and_deliver(log: Log = log) -> None:
                train(log)
                assert tracked._queue is not None and tracked._queue.flush(60)

            own_s.append(measure_cpu_s(train_and_deliver))
            peer_s.append(measure_cpu_s(lambda: train(lambda line, step: None)))
        tracked.end("FINISHED")
    print_line("training, tracked", "CPU s", min(own_s), ("untracked", min(peer_s)))


if __name__ == "__main__":
    main()
