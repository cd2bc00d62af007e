"""Find how many clips of AST-base fit into memory in a training step, with and without activation checkpointing.

    python -m bench.memory

On a GPU, finds the largest micro-batch by trial, takes some steps with it, and prints a JSON line for the number of
clips and one for the speed, with measured and estimated peak memory. Without a GPU, prints the estimate for 80 GB.
"""

import itertools
import time

import torch

from ast_model.config import ASTConfig, TrainConfig
from ast_model.distributed import World
from ast_model.model import AST
from ast_model.training.memory import find_micro_batch, step_bytes
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper
from ast_model.training.step_metrics import memory_peak_gib
from bench.lines import print_line
from bench.train_step import NORMAL, make_batch

MODEL = ASTConfig.base()
MANY = 16384
"""Samples per step: many, since micro-batches divide them into equal parts, so that candidate sizes are close."""
NUM_STEPS = 3
BYTES_OF_A_GPU = 80e9


def try_on_gpu(is_checkpointing: bool, world: World) -> tuple[int, float, str]:
    """Return the largest micro-batch, its samples per second, and measured and estimated memory."""
    config = TrainConfig(global_batch_size=MANY, micro_batch_size="auto", activation_checkpointing=is_checkpointing)
    torch.manual_seed(0)
    state = TrainingState(AST(MODEL).train(), config, world)
    size = find_micro_batch(state, config, NORMAL, world)
    config = TrainConfig(global_batch_size=size, micro_batch_size=size, activation_checkpointing=is_checkpointing)
    stepper, batches = Stepper(state, config, NORMAL, world), itertools.repeat(make_batch(MODEL, size, world.device))
    torch.cuda.reset_peak_memory_stats(world.device)
    stepper.train_step(0, 0, batches)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for step in range(NUM_STEPS):
        stepper.train_step(0, 1 + step, batches)
    torch.cuda.synchronize()
    rate = NUM_STEPS * size / (time.perf_counter() - started)
    peak_gib, computed_gib = memory_peak_gib(world.device), step_bytes(MODEL, config, size, world) / 2**30
    del state, stepper, batches
    torch.cuda.empty_cache()
    return size, rate, f"{peak_gib:.1f} GiB, {computed_gib:.1f} by computation"


def by_computation(is_checkpointing: bool, world: World) -> int:
    """Estimate the number of clips that fit into 80 GB in bf16."""
    config = TrainConfig(precision="bf16", activation_checkpointing=is_checkpointing)
    fixed, one = (step_bytes(MODEL, config, num_clips, world) for num_clips in (0, 1))
    return int((BYTES_OF_A_GPU - fixed) / (one - fixed))


def main() -> None:
    if not torch.cuda.is_available():
        recomputed, kept = (by_computation(each, World(0, 1, torch.device("cpu"))) for each in (True, False))
        peer = ("without", float(kept))
        print_line("largest micro-batch by computation, activation checkpointing", "clips of 80 GB", recomputed, peer)
        return
    world = World(0, 1, torch.device("cuda", 0))
    kept, kept_rate, kept_memory = try_on_gpu(False, world)
    print_line("largest micro-batch", "clips", kept, peak_memory=kept_memory)
    recomputed, rate, memory = try_on_gpu(True, world)
    print_line(
        "largest micro-batch, activation checkpointing", "clips", recomputed, ("without", kept), peak_memory=memory
    )
    print_line("activation checkpointing", "samples/s", rate, ("without", kept_rate))


if __name__ == "__main__":
    main()
