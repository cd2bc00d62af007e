"""Duration of a training, by a few steps and evaluations on trial, and what would be faster."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ast_model.config import ASTConfig
from ast_model.data.augment import prepare
from ast_model.data.loader import split_evenly
from ast_model.distributed import World
from ast_model.evaluation.evaluate import evaluation_mode
from ast_model.flops import FORWARDS_PER_STEP, PEAK_FLOPS, forward_flops
from ast_model.model import AST
from ast_model.training.data import TrainingData
from ast_model.training.job import Job
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper
from ast_model.training.trainer import Trainer
from pipeline.progress import format_duration
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

H200_FLOPS = 0.38 * PEAK_FLOPS["H200"]
"""Operations per second that a training reaches on an H200, as `make gpu` measured."""

MEASURE_S = 3.0
MAX_STEPS = 30
"""Steps on trial, where they take less than `MEASURE_S` in all."""
NUM_EVAL_BATCHES = 4
MAX_MEASURED_FLOPS = {"cpu": 1e11, "cuda": 1e14}
"""Of a step that is taken on trial, on one rank: a second or two. For more, fewer blocks or samples are measured."""
WORTH_SAVING_S = 60.0
"""A shorter training needs no advice."""
SHORT_SHARE = 0.5
"""Clips that fill less than this of the model's window are far shorter."""


@dataclass(frozen=True)
class MeasuredCost:
    """Seconds of what a training repeats, all ranks together."""

    step_s: float
    eval_clip_s: float
    num_steps: int
    """Steps that were measured."""


def log_estimate(trainer: Trainer, faster: Sequence[str] = ()) -> None:
    """Log the samples that are left to train on, the time for each and in all, and what would be faster.

    faster: other ways; a GPU is added where there is none. Every rank has to call it, before the training goes on.
    """
    job, world, loop = trainer.job, trainer.world, trainer.state.loop
    config, num_eval = job.config, len(trainer.data.eval_clips.rows)
    num_steps = config.num_epochs * trainer.data.num_steps - trainer.num_steps_done
    if num_steps <= 0:
        return
    num_evals = config.num_epochs - loop.epoch + (config.average_last_epochs > 1)
    cost = measure_cost(trainer)
    if not world.is_main:
        return
    seconds = num_steps * cost.step_s + num_evals * num_eval * cost.eval_clip_s
    num_samples, where = num_steps * config.global_batch_size, "GPU" if world.device.type == "cuda" else "CPU"
    log.info(
        "%d samples in %d epochs, %.3g ms each on %d %s workers: about %s with %d evaluations of %d clips"
        " (measured on %d steps)",
        *(num_samples, config.num_epochs - loop.epoch, 1000 * cost.step_s / config.global_batch_size),
        *(world.size, where, format_duration(seconds), num_evals, num_eval, cost.num_steps),
    )
    if where == "CPU":
        # An evaluation is a forward only.
        work = num_samples + num_evals * num_eval / FORWARDS_PER_STEP
        gpu_s = work * FORWARDS_PER_STEP * forward_flops(job.model) / H200_FLOPS
        faster = [*faster, f"a GPU (an H200 would compute for {format_duration(max(1.0, gpu_s))})"]
    if faster and seconds > WORTH_SAVING_S:
        log.info("faster: %s", "; ".join(faster))
    warn_of_padding(job.model, job.snapshot)


def measure_cost(trainer: Trainer) -> MeasuredCost:
    """Take steps and score clips with a model that is thrown away: with the training's data, batches and ranks.

    Where a step takes long, fewer blocks and smaller batches are measured: the rest takes time by its operations. The
    training itself is left as it is, to the last bit.
    """
    world, epoch = trainer.world, trainer.state.loop.epoch
    job, num_times = _in_small(trainer.job, world)
    config = job.config
    is_same = config.global_batch_size == trainer.config.global_batch_size
    data = trainer.data if is_same else TrainingData(job)
    with torch.random.fork_rng(devices=[]):
        model = AST(job.model)
    state = TrainingState(model, config, world)
    stepper = Stepper(state, config, job.normalisation, world, trainer.stepper.attention)

    def seconds_of_steps(num_steps: int) -> float:
        started_s = time.perf_counter()
        batches = data.batches(epoch, range(num_steps), world)
        losses = [stepper.train_step(epoch, step, batches).loss for step in range(num_steps)]
        losses[-1].item()  # waits for the device
        return time.perf_counter() - started_s

    seconds_of_steps(1)  # allocates
    # The main rank's clock decides for all: they exchange gradients at each step.
    wished = world.broadcast_object(int(np.clip(MEASURE_S / seconds_of_steps(1), 1, MAX_STEPS)))
    num_steps = min(wished, data.num_steps)
    step_s = num_times * seconds_of_steps(num_steps) / num_steps
    num_times_forward = forward_flops(trainer.job.model) / forward_flops(job.model)
    eval_clip_s = num_times_forward * _seconds_per_eval_clip(model, trainer, config.clips_at_a_time)
    return MeasuredCost(step_s, eval_clip_s, num_steps)


def _seconds_per_eval_clip(model: AST, trainer: Trainer, batch_size: int) -> float:
    """Score a few batches as an evaluation does; all ranks score at a time."""
    clips, norm, world = trainer.data.eval_clips, trainer.job.normalisation, trainer.world
    batches = split_evenly(len(clips.rows), world.rank, world.size, batch_size)[:NUM_EVAL_BATCHES]
    started_s = time.perf_counter()
    with evaluation_mode(model), world.autocast("auto"):
        for positions in batches:
            model(prepare(clips.read_clips(positions).to(world.device), norm.mean, norm.std)).sum().item()
    num_clips = world.size * sum(map(len, batches))
    return (time.perf_counter() - started_s) / num_clips if num_clips else 0.0


def _in_small(job: Job, world: World) -> tuple[Job, float]:
    """Return a training whose steps take a second or two at most, and how many times as long the job's own take."""
    config, model = job.config, job.model
    num_kept = config.regularise.num_kept_patches(model.grid)
    most = MAX_MEASURED_FLOPS[world.device.type] / FORWARDS_PER_STEP
    num_samples = -(-config.global_batch_size // world.size)
    shape, num_measured = model, num_samples
    while num_measured * forward_flops(shape, num_kept) > most and (shape.depth > 1 or num_measured > 1):
        if shape.depth > 1:
            shape = dataclasses.replace(shape, depth=shape.depth // 2)
        else:
            num_measured //= 2
    small = dataclasses.replace(
        config,
        global_batch_size=config.global_batch_size if num_measured == num_samples else num_measured * world.size,
        micro_batch_size=min(config.clips_at_a_time, num_measured),
        compile="none",  # takes longer than all that is measured here
    )
    scale = num_samples * forward_flops(model, num_kept) / (num_measured * forward_flops(shape, num_kept))
    return dataclasses.replace(job, config=small, model=shape), scale


def warn_of_padding(model: ASTConfig, snapshot: Snapshot) -> None:
    """Warn where most clips are far shorter than what the model takes: the rest is computed on padding."""
    typical = float(np.median(snapshot.index["num_frames"].to_numpy()))
    if typical < SHORT_SHARE * model.num_frames:
        log.warning(
            "half of the clips last at most %.1f s, but the model takes %.1f s: the rest is padding."
            " Shorter clips train faster: --clip-s %.1f for your own sounds, else --model.num-frames",
            *(typical / 100, model.num_frames / 100, max(0.1, typical / 100)),
        )
