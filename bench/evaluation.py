"""Measure the overhead of an evaluation over its forward passes: reading, normalising, gathering, metrics.

    python -m bench.evaluation

Alternates between `evaluate` on local shards and plain forward passes over the same batches, prepared on the device.
Uses AST-base on a GPU, or a small model on a single CPU thread. Prints a JSON line with the median seconds of both, and
their ratio in CPU seconds, which depends less on the machine's load.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

from ast_model.config import ASTConfig, CacheConfig
from ast_model.data.augment import Normalisation, prepare
from ast_model.data.loader import BatchReader, open_reader, split_evenly
from ast_model.distributed import World
from ast_model.evaluation.evaluate import evaluate, evaluation_mode
from ast_model.model import AST
from bench.lines import print_line
from bench.stores import NUM_CLASSES, make_store
from bench.train_step import wait
from pipeline.store.storage import Store

SMALL = ASTConfig(width=192, depth=4, num_heads=3, freq_stride=16, time_stride=16)
NORMAL = Normalisation(-4.27, 4.57)


def time_in_turns(works: list[Callable[[], object]], rounds: int, world: World) -> list[tuple[float, float]]:
    """Return the wall seconds and CPU seconds of each function, as medians over rounds."""
    taken: list[list[tuple[float, float]]] = [[] for _ in works]
    for _ in range(rounds):
        for work, times in zip(works, taken, strict=True):
            wait(world)
            started, started_cpu = time.perf_counter(), time.process_time()
            work()
            wait(world)
            times.append((time.perf_counter() - started, time.process_time() - started_cpu))
    return [(median(wall for wall, _ in times), median(cpu for _, cpu in times)) for times in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    world = World(0, 1, torch.device("cuda", 0) if is_gpu else torch.device("cpu"))
    torch.set_num_threads(torch.get_num_threads() if is_gpu else 1)
    config, size, num_clips = (ASTConfig.base(), 64, 2048) if is_gpu else (SMALL, 8, 64)
    num_clips = args.clips or num_clips
    model = AST(config).to(world.device)
    with tempfile.TemporaryDirectory() as folder:
        snapshot = make_store(Store(folder), 1, num_clips)
        rows = np.arange(num_clips)
        clips = BatchReader(open_reader(snapshot, CacheConfig()), rows, snapshot.targets(rows), config.num_frames)
        ready = [
            prepare(clips.read_clips(positions).to(world.device), NORMAL.mean, NORMAL.std)
            for positions in split_evenly(num_clips, 0, 1, size)
        ]

        def forward() -> None:
            with evaluation_mode(model), world.autocast("auto"):
                for fbank_BTM in ready:
                    model(fbank_BTM)

        def whole() -> None:
            with world.autocast("auto"):
                evaluate(model, clips, world, NORMAL, size)

        (ours_s, ours_cpu_s), (peer_s, peer_cpu_s) = time_in_turns([whole, forward], args.rounds, world)
    rest = {"clips": num_clips, "classes": NUM_CLASSES, "processor_ratio": ours_cpu_s / peer_cpu_s}
    print_line("evaluation", "s", ours_s, ("plain forward", peer_s), **rest)


if __name__ == "__main__":
    main()
