"""Check all ranks before the first step, and measure the speed of exchanging gradients."""

import logging
import platform
import socket
import time
from collections import Counter

import torch

from ast_model.distributed import ANSWER_TIMEOUT_S, AUTOCAST_DTYPES, World, driver_version
from ast_model.flops import count_parameters, training_flops
from ast_model.training.job import TrainingJob

log = logging.getLogger(__name__)

GRADIENT_BYTES = 4
"""Bytes per parameter: gradients are float32."""
BACKWARD_SHARE = 2 / 3
"""Share of a step's operations in the backward pass, during which gradients are exchanged."""
PRODUCT_SHARE = 0.5
"""Typical speed of a whole training step relative to that of a single large matrix product."""
MAX_CHARS = 500
"""Maximum length of a description in MLflow."""
PRODUCT_SIZES = {"cpu": 1024, "cuda": 8192}


def check_exchange(job: TrainingJob, world: World) -> None:
    """Exchange as many bytes as one step, and log the speed and the ranks. All ranks call this together.

    Raises WorkerError if ranks can't reach each other or, within a minute, if ranks do not answer.
    """
    if world.size == 1:
        return
    descriptions = world.gather_texts("rank", describe_rank(world), ANSWER_TIMEOUT_S)
    num_bytes = GRADIENT_BYTES * count_parameters(job.model)
    found = traffic(num_bytes, world.size) / world.seconds_of_all_reduce(num_bytes, ANSWER_TIMEOUT_S)
    required = traffic(num_bytes, world.size) / backward_seconds(job, world)
    if world.is_main:
        ranks = ", ".join(f"{count} × {text}" for text, count in Counter(descriptions).items())
        _log_exchange(job, f"{world.size} ranks: {ranks}", num_bytes / 1e6, found / 1e9, required / 1e9)


def _log_exchange(job: TrainingJob, ranks: str, num_mb: float, found: float, required: float) -> None:
    log.info("%s", ranks)
    effect = "the backward pass hides the exchange" if found >= required else "the steps will wait for the network"
    log.log(
        logging.INFO if found >= required else logging.WARNING,
        "gradients of %.1f MB are exchanged at %.3g GB/s per rank; the estimated need is %.3g GB/s: %s",
        *(num_mb, found, required, effect),
    )
    facts = {"gradient_mb": f"{num_mb:.1f}", "exchange_gb_per_s": f"{found:.3g}", "needed_gb_per_s": f"{required:.3g}"}
    job.tracker.log_late_params(
        {"ranks.devices": ranks[:MAX_CHARS]} | {f"ranks.{name}": value for name, value in facts.items()}
    )


def describe_rank(world: World) -> str:
    """Describe a rank's host, device and driver."""
    if world.device.type == "cuda":
        device = f"{torch.cuda.get_device_name(world.device)}, {driver_version()}"
    else:
        device = f"CPU {platform.machine()}, {torch.get_num_threads()} threads"
    return f"{socket.gethostname()} ({device}, torch {torch.__version__})"


def traffic(num_bytes: int, num_ranks: int) -> float:
    """Return the bytes that each rank sends in a ring all-reduce."""
    return 2 * (num_ranks - 1) / num_ranks * num_bytes


def backward_seconds(job: TrainingJob, world: World) -> float:
    """Estimate the time of a step's backward pass from the speed of a matrix product."""
    model = job.model
    flops = training_flops(model, job.config.regularise.num_kept_patches(model.grid))
    per_rank = BACKWARD_SHARE * flops * job.config.global_batch_size / world.size
    dtype = AUTOCAST_DTYPES.get(world.resolve(job.config.precision), torch.float32)
    return per_rank / (PRODUCT_SHARE * _product_flops_per_s(world.device, dtype))


def _product_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    size = PRODUCT_SIZES[device.type]
    factor = torch.ones(size, size, device=device, dtype=dtype)
    seconds = float("inf")
    for _ in range(3):  # the first product includes the start of the library
        started = time.perf_counter()
        (factor @ factor)[0, 0].item()
        seconds = min(seconds, time.perf_counter() - started)
    return 2 * size**3 / seconds
