"""Estimate the GPU memory of a training step, and find the largest micro-batch that fits."""

import dataclasses
import logging
import math

import numpy as np
import torch

from ast_model.config import ASTConfig, Features, TrainConfig
from ast_model.data.augment import Normalisation
from ast_model.data.loader import Batch
from ast_model.data.sampling import NUM_UNIFORMS
from ast_model.distributed import AUTOCAST_DTYPES, World
from ast_model.flops import count_parameters
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper
from ast_model.training.step_metrics import memory_peak_gib
from pipeline.fbank_settings import FRAME_LENGTH, FRAME_SHIFT

log = logging.getLogger(__name__)

BYTES_PER_PARAMETER = 16
"""Bytes per parameter for the weight, its gradient and Adam's two moments in float32."""
RESERVE_SHARE = 0.05
"""Share of GPU memory that trials leave free for checkpoints, evaluations and fragmentation."""
MAX_COMPUTED_SHARE = 1.25
"""Share of GPU memory above which an estimated size is not tried."""


def step_bytes(model: ASTConfig, config: TrainConfig, num_clips: int, world: World) -> int:
    """Estimate the peak memory of a step with micro-batches of `num_clips` clips.

    Counts the activations that the backward pass needs. These are the patches and, in each block, the float32 inputs of
    both LayerNorms. In the precision of the products, each block also stores the inputs of its four products, its
    queries, keys and values, and its MLP before the GELU. A block that is in its backward pass needs the same amount
    again, except a last block that computes only the extra tokens. Compiled code needs less memory. `math`
    attention needs far more, for the attention weights.
    """
    is_half = world.resolve(config.precision) in AUTOCAST_DTYPES
    num_tokens = config.regularise.num_kept_patches(model.grid) + model.num_extra_tokens
    half = 2 if is_half else 4
    block = (2 * 4 + (6 + 2 * model.mlp_ratio) * half) * model.width * num_tokens
    num_whole = model.depth - (model.pooling == "extra")
    kept = model.depth * 4 * model.width * num_tokens if config.activation_checkpointing else num_whole * block
    patches = half * model.num_patches * model.patch_freq * model.patch_time
    bytes_per_parameter = BYTES_PER_PARAMETER + (4 if config.average_last_epochs else 0)
    bytes_per_parameter += 2 if is_half else 0  # autocast caches the weights in half precision
    return bytes_per_parameter * count_parameters(model) + num_clips * (patches + kept + block)


def resolve_micro_batch(state: TrainingState, config: TrainConfig, norm: Normalisation, world: World) -> TrainConfig:
    """Resolve `--train.micro-batch-size auto`. On a GPU, this tries different sizes."""
    if config.micro_batch_size != "auto":
        return config
    num_clips = (
        find_micro_batch(state, config, norm, world) if world.device.type == "cuda" else config.clips_per_micro_batch
    )
    # Take the minimum over ranks. Some GPUs may be shared, but the run has a single setting.
    num_clips = int(world.gather_rows(torch.tensor([num_clips])).min())
    if world.is_main:
        log.info("--train.micro-batch-size auto: %d clips", num_clips)
    return dataclasses.replace(config, micro_batch_size=num_clips)


def find_micro_batch(state: TrainingState, config: TrainConfig, norm: Normalisation, world: World) -> int:
    """Find the largest micro-batch that fits into this device's memory by training on silence.

    Tries only sizes that split the rank's samples into one, two, three … equal parts. Sizes in between would need the
    same number of passes.
    """
    model, device = state.model.config, world.device
    room = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else math.inf
    # Reserve memory for Adam's moments, which the optimizer allocates at its first step.
    reserve = 8 * count_parameters(model) + (int(RESERVE_SHARE * room) if math.isfinite(room) else 0)
    share = -(-config.global_batch_size // world.size)
    for size in sorted({-(-share // parts) for parts in range(1, share + 1)}, reverse=True):
        computed = step_bytes(model, config, size, world)
        if computed > MAX_COMPUTED_SHARE * room:
            continue
        peak = _peak_of_trial(state, config, norm, size, reserve, device)
        if device.type == "cuda":  # memory blocks of a failed size would fragment the training's memory
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        if world.is_main:
            found = "out of memory" if peak is None else f"{peak / 2**30:.1f} GiB"
            log.info("micro-batch of %d clips: %s, estimated %.1f GiB", size, found, computed / 2**30)
        if peak is not None:
            return size
    return 1


def _peak_of_trial(
    state: TrainingState, config: TrainConfig, norm: Normalisation, size: int, reserve: int, device: torch.device
) -> float | None:
    """Return the peak memory in bytes, or None if the size does not fit."""
    # Use no collectives, because ranks may try different numbers of sizes. Skip compilation, which takes minutes per
    # size.
    alone = World(0, 1, device)
    trial = dataclasses.replace(config, global_batch_size=size, micro_batch_size=size, compile="none")
    try:
        held = torch.empty(reserve if device.type == "cuda" else 0, dtype=torch.uint8, device=device)
        stepper = Stepper(state, trial, norm, alone)
        batch = blank_batch(state.model.config, config.features, size)
        stepper.gradient_is_finite(0, 0, iter([batch]), stepper.attention)
    except torch.OutOfMemoryError:
        return None
    return memory_peak_gib(device) * 2**30 - held.numel() + 8 * count_parameters(state.model.config)


def blank_batch(model: ASTConfig, features: Features, num_clips: int) -> Batch:
    """Return a silent micro-batch with the shapes used in training. Every other clip is mixed."""
    num_frames = model.num_frames
    if features == "fbank":
        clips = torch.zeros(num_clips, num_frames, model.num_mel_bins, dtype=torch.float16)
    else:
        clips = torch.zeros(num_clips, FRAME_LENGTH + (num_frames - 1) * FRAME_SHIFT, dtype=torch.int16)
    lengths_B, mixed = torch.full((num_clips,), clips.shape[1]), torch.arange(0, num_clips, 2)
    return Batch(
        features=features,
        num_frames=num_frames,
        rows=np.arange(num_clips),
        clips=clips,
        lengths_B=lengths_B,
        targets_BC=torch.zeros(num_clips, model.num_classes),
        mixed=mixed,
        partners=clips[mixed],
        partner_lengths_Q=lengths_B[mixed],
        lambda_Q=torch.full((len(mixed),), 0.5),
        uniforms=torch.full((num_clips, NUM_UNIFORMS), 0.5),
    )
