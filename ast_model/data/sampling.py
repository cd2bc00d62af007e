"""The draw plan of an epoch, with clips, mixup partners and random numbers for the augmentation.

The plan is a pure function of (snapshot, seed, epoch, settings), and every rank computes all of it. The global batches
are therefore the same for any number of ranks, and a run can resume at any step.
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
    """Consecutive draws of an epoch."""

    clip: np.ndarray
    """Indices (N,) int64 into the training clips."""
    partner: np.ndarray
    """Indices (N,) int64 of the clips to mix with, or `NO_PARTNER`."""
    mixup_lambda: np.ndarray
    """Share (N,) float32 of the clip in the mixture; 1 without a partner."""
    uniforms: np.ndarray
    """Random numbers (N, NUM_UNIFORMS) float32 in [0, 1) for the augmentation."""

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, part: slice | np.ndarray) -> "Draws":
        return Draws(self.clip[part], self.partner[part], self.mixup_lambda[part], self.uniforms[part])


def plan_epoch(
    weights: np.ndarray, num_draws: int, sampler: Sampler, augment: AugmentConfig, seed: tuple[str, int, int]
) -> Draws:
    """Draw an epoch.

    weights: sampling weights (N,) of the training clips. seed: snapshot id, seed of the run, epoch.
    Raises ConfigError if the sampler can't use the weights or the number of draws.
    """
    # Keep the order of these calls. Another order would give other draws for the same seed.
    rng = np.random.default_rng(_seed_of(*seed))
    clip = _draw_clips(rng, weights, num_draws, sampler)
    is_mixed = rng.random(num_draws) < augment.mixup_probability
    # As in AST's official code, partners are drawn uniformly by every sampler. Only clips are balanced.
    partner = np.where(is_mixed, rng.integers(len(weights), size=num_draws), NO_PARTNER)
    mixup_lambda = np.where(is_mixed, rng.beta(augment.mixup_alpha, augment.mixup_alpha, num_draws), 1.0).astype(
        np.float32
    )
    # Random crops were added later. Draw their numbers last, so that older seeds still give the same draws.
    uniforms = [rng.random((num_draws, count), dtype=np.float32) for count in (CROP, NUM_UNIFORMS - CROP)]
    return Draws(clip, partner, mixup_lambda, np.concatenate(uniforms, axis=1))


def group_by_shard(draws: Draws, shard_of_clip: np.ndarray, window: int, seed: tuple[str, int, int]) -> Draws:
    """Group the draws in each window by shard. The shards come in random order.

    shard_of_clip: shard (N,) of each training clip. Clips, partners and λ stay the same.
    """
    # Use a separate generator, so that grouping does not change the draws of `plan_epoch`.
    rng = np.random.default_rng([_seed_of(*seed), window])
    num_shards = int(shard_of_clip.max()) + 1
    order = np.arange(len(draws))
    for start in range(0, len(draws), window):
        turn_of_shard = rng.permutation(num_shards)
        turns = turn_of_shard[shard_of_clip[draws.clip[start : start + window]]]
        # A stable sort keeps the order within a shard in every version of NumPy.
        order[start : start + window] = start + np.argsort(turns, kind="stable")
    return draws[order]


def _seed_of(snapshot_id: str, seed: int, epoch: int) -> int:
    # Hash seed and epoch. With their sum, epoch 1 of seed 0 would repeat the draws of epoch 0 of seed 1.
    return int.from_bytes(hashlib.sha256(f"{snapshot_id}/{seed}/{epoch}".encode()).digest()[:16], "big")


def _draw_clips(rng: np.random.Generator, weights: np.ndarray, num_draws: int, sampler: Sampler) -> np.ndarray:
    if not len(weights):
        raise NoClipsError("expected training clips to draw from, found none")
    if sampler == "uniform":
        check_num_draws(num_draws, len(weights), "clips")
        return rng.permutation(len(weights))[:num_draws]
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ConfigError(
            "expected finite weights, some of them above 0, found"
            f" {np.count_nonzero(~np.isfinite(weights))} not finite and {np.count_nonzero(weights)} of {len(weights)}"
            " not zero; rebuild the snapshot, or use --train.sampler uniform"
        )
    if sampler == "balanced":
        # Invert the cumulative weights, because `torch.multinomial` is limited to 2^24 clips.
        edges = np.cumsum(weights, dtype=np.float64)
        return np.searchsorted(edges, rng.random(num_draws) * edges[-1], side="right")
    check_num_draws(num_draws, int(np.count_nonzero(weights)), "clips with a weight")
    return _draw_without_replacement(rng, weights, num_draws)


def _draw_without_replacement(rng: np.random.Generator, weights: np.ndarray, num_draws: int) -> np.ndarray:
    """Draw by weight without replacement (Efraimidis and Spirakis, 2006)."""
    # Clip i arrives after an exponentially distributed time with rate `weights[i]`, and the first arrivals are drawn.
    # This takes one pass instead of one per draw. Clips of weight 0 never arrive.
    with np.errstate(divide="ignore"):
        arrival = rng.exponential(size=len(weights)) / weights
    first = np.argpartition(arrival, num_draws - 1)[:num_draws]
    return first[np.argsort(arrival[first])]


def check_num_draws(num_draws: int, num_clips: int, unit: str) -> None:
    """Raise ConfigError if there are more draws than clips. For samplers without replacement."""
    if num_draws > num_clips:
        raise ConfigError(
            f"--train.draws-per-epoch is {num_draws}, but there are {num_clips} {unit}, and this sampler draws each at"
            " most once; lower it, or use --train.sampler balanced"
        )


def num_steps_of(num_draws: int, global_batch_size: int) -> int:
    """Return the number of full global batches in an epoch. Raises NoClipsError if there are none."""
    num_steps = num_draws // global_batch_size
    if num_steps == 0:
        raise NoClipsError(
            f"expected at least one global batch of {global_batch_size} per epoch, found {num_draws} draws; lower"
            " --train.global-batch-size or raise --train.draws-per-epoch"
        )
    return num_steps


def rank_slice(step: int, global_batch_size: int, rank: int, world_size: int) -> slice:
    """Return a rank's share of a global batch as a slice of the epoch's draws. Shares differ by at most one clip."""
    if world_size > global_batch_size:
        raise ConfigError(
            f"expected --train.global-batch-size of at least one sample per rank, found {global_batch_size} for"
            f" {world_size} ranks; raise it or train on fewer"
        )
    start = step * global_batch_size
    # Multiply before dividing, so that the shares of all ranks add up to the batch.
    bounds = [start + global_batch_size * r // world_size for r in (rank, rank + 1)]
    return slice(*bounds)
