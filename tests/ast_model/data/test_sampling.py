from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import WeightedRandomSampler

from ast_model.config import AugmentConfig, Sampler
from ast_model.data.sampling import (
    CROP,
    NO_PARTNER,
    NUM_UNIFORMS,
    Draws,
    group_by_shard,
    num_steps_of,
    plan_epoch,
    rank_slice,
)
from pipeline.errors import ConfigError, NoClipsError

SEED = ("snapshot", 0, 0)
WEIGHTS = np.array([1, 2, 3, 10, 0, 50, 0.5, 7])
CERTAIN = 1e-4
"""Significance level. Seeds are fixed, so a correct sampler always passes."""


def plan(num_draws: int, sampler: Sampler = "balanced", seed: tuple[str, int, int] = SEED, **augment) -> Draws:
    return plan_epoch(WEIGHTS, num_draws, sampler, AugmentConfig(**augment), seed)


def are_equal(one: Draws, other: Draws) -> bool:
    return all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(Draws))


def chance_of_one_source(counts: np.ndarray) -> float:
    """Return the p-value of a chi-square test that two rows of counts (2, N) have the same distribution."""
    expected = np.broadcast_to(counts.mean(axis=0), counts.shape)
    seen = expected > 0
    num_drawn = seen[0].sum()
    return float(stats.chisquare(counts[seen], expected[seen], ddof=num_drawn).pvalue)


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("global_batch_size", [4, 7, 12])
def test_ranks_share_each_global_batch_in_order(world_size: int, global_batch_size: int) -> None:
    draws = plan(50)
    for step in range(num_steps_of(50, global_batch_size)):
        shares = [rank_slice(step, global_batch_size, rank, world_size) for rank in range(world_size)]
        sizes = [len(draws[share]) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        taken = np.concatenate([draws[share].clip for share in shares])
        np.testing.assert_array_equal(taken, draws.clip[step * global_batch_size : (step + 1) * global_batch_size])


def test_epoch_depends_only_on_its_seed() -> None:
    np.random.seed(1)
    draws = plan(100)
    np.random.seed(2)
    assert are_equal(draws, plan(100))
    for seed in (("other", 0, 0), ("snapshot", 1, 0), ("snapshot", 0, 1)):
        assert not np.array_equal(draws.clip, plan(100, seed=seed).clip)
        assert not np.array_equal(draws.uniforms, plan(100, seed=seed).uniforms)


def test_crops_do_not_change_other_random_numbers_of_a_plan() -> None:
    before = [[0.56331897, 0.70755786, 0.18404675, 0.77100271, 0.41943645, 0.12592691]]
    np.testing.assert_allclose(plan(100).uniforms[:1, :CROP], before, rtol=1e-6)


def test_balanced_draws_match_torchs_weighted_sampler() -> None:
    num_draws = 100_000
    ours = np.bincount(plan(num_draws).clip, minlength=len(WEIGHTS))
    generator = torch.Generator().manual_seed(0)
    sampled = list(WeightedRandomSampler(WEIGHTS.tolist(), num_draws, replacement=True, generator=generator))
    theirs = np.bincount(sampled, minlength=len(WEIGHTS))
    drawable = WEIGHTS > 0
    assert ours[~drawable].sum() == theirs[~drawable].sum() == 0
    assert chance_of_one_source(np.stack([ours, theirs])) > CERTAIN


def test_draw_counts_match_the_weights() -> None:
    num_draws = 100_000
    found = np.bincount(plan(num_draws).clip, minlength=len(WEIGHTS))
    expected = num_draws * WEIGHTS / WEIGHTS.sum()
    assert found[expected == 0].sum() == 0
    assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > CERTAIN


def test_draws_without_replacement_match_numpys_choice() -> None:
    # Compare ordered triples: the clips drawn first, second and third.
    weights = np.array([1, 2, 5, 0, 12])
    rng = np.random.default_rng(0)
    num_epochs = 4000
    ours = [
        plan_epoch(weights, 3, "without_replacement", AugmentConfig(), ("snapshot", 0, epoch)).clip
        for epoch in range(num_epochs)
    ]
    theirs = [rng.choice(5, 3, replace=False, p=weights / weights.sum()) for _ in range(num_epochs)]
    counts = np.stack([np.bincount(np.array(drawn) @ [25, 5, 1], minlength=125) for drawn in (ours, theirs)])
    assert chance_of_one_source(counts) > CERTAIN


def test_uniform_draws_take_each_clip_once() -> None:
    assert sorted(plan(8, "uniform").clip) == list(range(8))
    assert len(set(plan(5, "uniform").clip)) == 5


def test_partners_are_uniform_and_lambdas_beta_distributed() -> None:
    draws = plan(20_000, mixup_probability=0.3, mixup_alpha=10.0)
    is_mixed = draws.partner != NO_PARTNER
    assert stats.binomtest(int(is_mixed.sum()), len(draws), 0.3).pvalue > CERTAIN
    assert (draws.mixup_lambda[~is_mixed] == 1).all()
    assert stats.chisquare(np.bincount(draws.partner[is_mixed], minlength=len(WEIGHTS))).pvalue > CERTAIN
    assert stats.kstest(draws.mixup_lambda[is_mixed], stats.beta(10, 10).cdf).pvalue > CERTAIN
    assert draws.uniforms.shape == (20_000, NUM_UNIFORMS)
    assert stats.kstest(draws.uniforms.ravel(), stats.uniform.cdf).pvalue > CERTAIN


@pytest.mark.parametrize(
    ("weights", "num_draws", "sampler", "error", "message"),
    [
        ([], 1, "balanced", NoClipsError, "training clips to draw from, found none"),
        ([0, 0], 1, "balanced", ConfigError, "found 0 not finite and 0 of 2 not zero"),
        ([1, np.nan], 1, "balanced", ConfigError, "1 not finite"),
        ([1, -1], 1, "without_replacement", ConfigError, "finite weights"),
        ([1, 0, 1], 3, "without_replacement", ConfigError, "3, but there are 2 clips with a weight"),
        ([1, 1], 3, "uniform", ConfigError, "draws-per-epoch is 3, but there are 2 clips"),
    ],
)
def test_impossible_draws_are_rejected(
    weights: list[float], num_draws: int, sampler: Sampler, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_epoch(np.array(weights), num_draws, sampler, AugmentConfig(), SEED)


def test_unfilled_global_batches_are_rejected() -> None:
    with pytest.raises(NoClipsError, match="global batch of 12 per epoch, found 11 draws"):
        num_steps_of(11, 12)
    with pytest.raises(ConfigError, match="found 2 for 4 ranks"):
        rank_slice(0, 2, 0, 4)


def test_grouping_keeps_every_draw_and_groups_shards() -> None:
    shard_of_clip = np.array([2, 0, 1, 0, 2, 1, 1, 0])
    draws = plan(1000)
    grouped = group_by_shard(draws, shard_of_clip, 300, SEED)
    assert are_equal(grouped, group_by_shard(draws, shard_of_clip, 300, SEED))
    firsts = []
    for start in range(0, 1000, 300):
        part, of_plan = grouped[start : start + 300], draws[start : start + 300]
        order = np.argsort(part.uniforms[:, 0]), np.argsort(of_plan.uniforms[:, 0])
        assert are_equal(part[order[0]], of_plan[order[1]])
        shards = shard_of_clip[part.clip]
        assert np.count_nonzero(np.diff(shards)) == 2
        firsts.append(shards[0])
    assert len(set(firsts)) > 1
