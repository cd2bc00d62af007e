"""How long a training will take here, and what would be faster: said before it begins."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import numpy as np
import torch

from ast_model.config import ASTConfig
from ast_model.model import AST
from ast_model.recipes import FORWARDS_PER_STEP, H200
from ast_model.training.job import Job
from jobs.config import RayConfig
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

MEASURE_S = 3.0
MAX_MEASURED_FLOPS = 2e11
"""Of a step that is measured: some seconds of one core."""
WORTH_SAVING_S = 60.0
"""A shorter training needs no advice."""
SHORT_SHARE = 0.5
"""Clips that fill less than this of the model's window are far shorter."""


def log_estimate(job: Job, config: RayConfig, faster: Sequence[str] = ()) -> None:
    """Log samples, time for each and in all, and what would be faster: `faster`, and a GPU if there is none."""
    train, model, snapshot = job.config, job.model, job.snapshot
    num_train, num_eval = len(snapshot.rows_of(train.train_splits)), len(snapshot.rows_of((train.eval_split,)))
    num_samples = train.num_epochs * (train.draws_per_epoch or num_train)
    # An evaluation is a forward, which takes a third of a training step.
    work = num_samples + train.num_epochs * num_eval / FORWARDS_PER_STEP
    flops = FORWARDS_PER_STEP * model.num_forward_flops
    gpu_s = work * flops / H200.flops_per_s
    if config.use_gpu:
        seconds, how = gpu_s / config.num_workers[1], "by computation, on H200s at 45 % of their peak"
    else:
        seconds = work * measure_sample_s(model) / config.num_workers[1]
        how = f"measured here, on {config.num_workers[1]} CPU workers"
        faster = [*faster, f"a GPU (an H200 would compute {_duration(gpu_s)})"]
    log.info(
        "%d epochs of %d samples, %.0f ms each: about %s, with evaluations of %d clips (%s)",
        *(train.num_epochs, num_samples // train.num_epochs, 1000 * seconds / work, _duration(seconds), num_eval, how),
    )
    if faster and seconds > WORTH_SAVING_S:
        log.info("faster: %s", "; ".join(faster))
    warn_of_padding(model, snapshot)


@cache
def measure_sample_s(model: ASTConfig) -> float:
    """Measure seconds per training sample on one core, within a few seconds.

    Of a large model fewer blocks are measured: the rest takes time by its operations.
    """
    depth = model.depth
    shape = model
    while depth > 1 and FORWARDS_PER_STEP * shape.num_forward_flops > MAX_MEASURED_FLOPS:
        depth = depth // 2
        shape = dataclasses.replace(model, depth=depth)
    batch_size = int(np.clip(MAX_MEASURED_FLOPS / FORWARDS_PER_STEP / shape.num_forward_flops, 1, 8))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)  # as a worker has
    try:
        network = AST(shape)
        fbank_BTM = torch.randn(batch_size, shape.num_frames, shape.num_mel_bins)
        network(fbank_BTM).sum().backward()  # the first one allocates
        num_steps, started_s = 0, time.monotonic()
        while num_steps == 0 or time.monotonic() - started_s < MEASURE_S:
            network(fbank_BTM).sum().backward()
            num_steps += 1
        seconds = (time.monotonic() - started_s) / (num_steps * batch_size)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
    return seconds * model.num_forward_flops / shape.num_forward_flops


def warn_of_padding(model: ASTConfig, snapshot: Snapshot) -> None:
    """Say so where most clips are far shorter than what the model takes: the rest is computed on padding."""
    typical = float(np.median(snapshot.index["num_frames"].to_numpy()))
    if typical < SHORT_SHARE * model.num_frames:
        log.warning(
            "half of the clips last at most %.1f s, but the model takes %.1f s: the rest is padding."
            " Shorter clips train faster: --clip-s %.1f for your own sounds, else --model.num-frames",
            *(typical / 100, model.num_frames / 100, max(0.1, typical / 100)),
        )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 1 else f"{seconds:.1f} s"
