"""The draw plan: which clips an epoch's batches hold, and how each is augmented.

It is a pure function of (snapshot, seed, epoch, settings), and each rank computes all of it. So the stream of global
batches is the same on any number of ranks, and a run resumes at any step by looking further down.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from ast_model.config import AugmentConfig, Sampler
from pipeline.errors import ConfigError, NoClipsError

NO_PARTNER = -1
FREQ_WIDTH, FREQ_START, TIME_WIDTH, TIME_START, ROLL, NOISE, CROP, PARTNER_CROP = range(8)
"""Columns of `Draws.uniforms`."""
NUM_UNIFORMS = 8


@dataclass(frozen=True)
class Draws:
    """Some draws of an epoch, in order."""

    clip: np.ndarray
    """(N,) int64, position among the training clips."""
    partner: np.ndarray
    """(N,) int64, position of the clip to mix with, or `NO_PARTNER`."""
    mixup_lambda: np.ndarray
    """(N,) float32, share of the clip in the mixture; 1 without a partner."""
    uniforms: np.ndarray
    """(N, NUM_UNIFORMS) float32 in [0, 1), for the augmentation."""

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, part: slice | np.ndarray) -> "Draws":
        return Draws(self.clip[part], self.partner[part], self.mixup_lambda[part], self.uniforms[part])


def plan_epoch(
    weights: np.ndarray, num_draws: int, sampler: Sampler, augment: AugmentConfig, seed: tuple[str, int, int]
) -> Draws:
    """Draw an epoch.

    weights: (N,) of the training clips. seed: snapshot id, seed of the run, epoch.
    Raises ConfigError for weights or a number of draws that the sampler can't draw by.
    """
    # The order of the calls below is part of the plan: another one gives other draws from the same seed.
    rng = np.random.default_rng(_seed_of(*seed))
    clip = _draw_clips(rng, weights, num_draws, sampler)
    is_mixed = rng.random(num_draws) < augment.mixup_probability
    # Partners are drawn uniformly whatever the sampler, as in AST's official code: only clips are balanced.
    partner = np.where(is_mixed, rng.integers(len(weights), size=num_draws), NO_PARTNER)
    mixup_lambda = np.where(is_mixed, rng.beta(augment.mixup_alpha, augment.mixup_alpha, num_draws), 1.0).astype(
        np.float32
    )
    # The crops' numbers are drawn behind the others, which are thereby the same as before there were crops.
    uniforms = [rng.random((num_draws, count), dtype=np.float32) for count in (CROP, NUM_UNIFORMS - CROP)]
    return Draws(clip, partner, mixup_lambda, np.concatenate(uniforms, axis=1))


def group_by_shard(draws: Draws, shard_of_clip: np.ndarray, window: int, seed: tuple[str, int, int]) -> Draws:
    """Reorder draws so that within each window those of a shard come together, shards in random order.

    What is drawn, with which partner and λ, stays the same. shard_of_clip: (N,) of the training clips.
    """
    # A generator of its own, so that grouping leaves alone what `plan_epoch` draws.
    rng = np.random.default_rng([_seed_of(*seed), window])
    num_shards = int(shard_of_clip.max()) + 1
    order = np.arange(len(draws))
    for start in range(0, len(draws), window):
        turn_of_shard = rng.permutation(num_shards)
        turns = turn_of_shard[shard_of_clip[draws.clip[start : start + window]]]
        # Stable, so that the draws of one shard keep their order whatever sort NumPy would choose.
        order[start : start + window] = start + np.argsort(turns, kind="stable")
    return draws[order]


def _seed_of(snapshot_id: str, seed: int, epoch: int) -> int:
    # Hashed, since sums of seed and epoch would give run 0 in epoch 1 the draws of run 1 in epoch 0.
    return int.from_bytes(hashlib.sha256(f"{snapshot_id}/{seed}/{epoch}".encode()).digest()[:16], "big")


def _draw_clips(rng: np.random.Generator, weights: np.ndarray, num_draws: int, sampler: Sampler) -> np.ndarray:
    if not len(weights):
        raise NoClipsError("expected training clips to draw from, found none")
    if sampler == "uniform":
        check_num_draws(num_draws, len(weights), "clips")
        return rng.permutation(len(weights))[:num_draws]
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError(
            "expected finite weights of which some are above 0, found"
            f" {np.count_nonzero(~np.isfinite(weights))} not finite and {np.count_nonzero(weights)} of {len(weights)}"
            " not zero; rebuild the snapshot, or use --train.sampler uniform"
        )
    if sampler == "balanced":
        # Inverse of the cumulative weights, as `torch.multinomial` with replacement, which stops at 2^24 clips.
        edges = np.cumsum(weights, dtype=np.float64)
        return np.searchsorted(edges, rng.random(num_draws) * edges[-1], side="right")
    check_num_draws(num_draws, int(np.count_nonzero(weights)), "clips with a weight")
    return _draw_without_replacement(rng, weights, num_draws)


def _draw_without_replacement(rng: np.random.Generator, weights: np.ndarray, num_draws: int) -> np.ndarray:
    """Draw one after the other, each time by weight among those left (Efraimidis and Spirakis, 2006)."""
    # The first arrivals of a race, in which clip i comes after an exponential time of rate `weights[i]`. One pass,
    # where drawing and re-normalising takes one per draw. A weight of 0 never arrives.
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=len(weights)) / weights
    first = np.argpartition(arrival, num_draws - 1)[:num_draws]
    return first[np.argsort(arrival[first])]


def check_num_draws(num_draws: int, num_clips: int, what: str) -> None:
    """Raise ConfigError if a sampler that draws each once is to draw more than there are."""
    if num_draws > num_clips:
        raise ConfigError(
            f"--train.draws-per-epoch is {num_draws}, but there are {num_clips} {what}, and this sampler draws each"
            " once; lower it, or use --train.sampler balanced"
        )


def num_steps_of(num_draws: int, global_batch_size: int) -> int:
    """Count the full global batches of an epoch; what is left over is not drawn."""
    num_steps = num_draws // global_batch_size
    if num_steps == 0:
        raise NoClipsError(
            f"expected at least one global batch of {global_batch_size} per epoch, found {num_draws} draws; lower"
            " --train.global-batch-size or raise --train.draws-per-epoch"
        )
    return num_steps


def rank_slice(step: int, global_batch_size: int, rank: int, world_size: int) -> slice:
    """Return where in the epoch's draws a rank's share of a step's global batch lies; shares differ by at most one."""
    if world_size > global_batch_size:
        raise ConfigError(
            f"expected --train.global-batch-size of at least one sample per rank, found {global_batch_size} for"
            f" {world_size} ranks; raise it or train on fewer"
        )
    start = step * global_batch_size
    # Multiplied before it is divided, so that the shares of all ranks add up to the batch.
    bounds = [start + global_batch_size * r // world_size for r in (rank, rank + 1)]
    return slice(*bounds)
