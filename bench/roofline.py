"""Show the time of a training step by kind of work, compared with the time at the device's peak.

    python -m bench.roofline                    # a small model on a CPU: a smoke test
    python -m bench.roofline --compile blocks   # AST-base on a GPU

Prints a JSON line per kind of work: matrix products, attention, copies, everything else (norms, gelu, optimizer,
augmentation), and the idle time of a GPU.
"""

import argparse
import itertools
import re
import time
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

from ast_model.config import ASTConfig, TrainConfig
from ast_model.distributed import World
from ast_model.flops import FORWARDS_PER_STEP, forward_flops
from ast_model.training.device import choose_compile
from ast_model.training.step_metrics import peak_flops
from bench.lines import print_line
from bench.train_step import SMALL, make_batch, ours, wait

NUM_WARM_STEPS, NUM_STEPS = 3, 3
KINDS = {
    "everything else": r"^triton",  # first: fused kernels are named after all their operations
    "attention": r"flash|fmha|sdpa|scaled_dot_product",
    "products": r"gemm|gemv|nvjet|cutlass|xmma|aten::(addmm|mm|bmm)|conv",
    "copies": r"memcpy|memset|aten::(copy_|fill_|zero_)",
}
"""Patterns of kernel names, or of operation names on a CPU. The first match counts."""


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), "everything else")


def operations(config: ASTConfig, size: int) -> dict[str, float]:
    """Count the operations of a step's matrix products and attention."""
    # The last block computes only the tokens that the head reads.
    num_last = config.num_extra_tokens if config.pooling == "extra" else config.num_tokens
    num_queries = (config.depth - 1) * config.num_tokens + num_last
    attention = 4 * num_queries * config.num_tokens * config.width
    whole = forward_flops(config)
    return {
        "attention": FORWARDS_PER_STEP * size * attention,
        "products": FORWARDS_PER_STEP * size * (whole - attention),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--compile", default="none", choices=("none", "auto", "blocks", "model"))
    args = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    world = World(0, 1, torch.device("cuda", 0) if is_gpu else torch.device("cpu"))
    torch.set_num_threads(torch.get_num_threads() if is_gpu else 1)
    config, size = (ASTConfig.base(), args.batch_size or 64) if is_gpu else (SMALL, args.batch_size or 4)
    step = ours(config, itertools.repeat(make_batch(config, size, world.device)), size, world, compile=args.compile)
    for _ in range(NUM_WARM_STEPS):
        step()
    wait(world)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        started = time.perf_counter()
        for _ in range(NUM_STEPS):
            step()
        wait(world)
        step_ms = 1000 * (time.perf_counter() - started) / NUM_STEPS
    milliseconds: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        if not is_gpu or event.device_type.name == "CUDA":  # skip operations, since their kernels are counted
            spent_us = event.self_device_time_total if is_gpu else event.self_cpu_time_total
            milliseconds[kind_of(event.key)] += spent_us / 1000 / NUM_STEPS
    if is_gpu:
        milliseconds["nothing to do"] = max(0.0, step_ms - sum(milliseconds.values()))
    peak, counts = peak_flops(world.device), operations(config, size)
    for kind, spent_ms in sorted(milliseconds.items(), key=lambda item: -item[1]):
        at_peak = ("at the device's peak", 1000 * counts[kind] / peak) if peak and kind in counts else None
        shown = {
            "share": spent_ms / step_ms,
            "compiled": choose_compile(TrainConfig(compile=args.compile), world),
            "batch_size": size,
        }
        print_line(f"a step's {kind}", "ms", spent_ms, at_peak, **shown)


if __name__ == "__main__":
    main()
