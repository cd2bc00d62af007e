"""The modern presets against AudioMosaic's configs and formulas (commit 67a86a8), written out.

AudioMosaic's own functions `param_groups_lrd`, `adjust_learning_rate_with_params` and `random_masking_2d`, run once on
its own model, gave the same learning rate at each step, the same rate and decay for each parameter at every 500th step,
and the same numbers of tokens.
"""

import dataclasses
import math

import pytest
import torch

from ast_model import recipes
from ast_model.model import AST
from ast_model.pretrained.layouts import AUDIO_VIT
from ast_model.recipes import Recipe, scale_batch
from ast_model.training.optimizer import make_optimizer, set_learning_rate
from ast_model.training.regularise import DropMaskSampler
from ast_model.training.schedule import learning_rate_factor

DEPTH, MIN_RATE, WEIGHT_DECAY = 12, 1e-6, 0.01
PUBLISHED = {
    # clips per epoch, batch, epochs, epochs of warm-up, rate for a batch of 256, layer decay
    "audioset_balanced_modern": (20_699, 64, 60, 4, 5e-4, 0.65),
    "audioset_modern": (200_000, 256, 100, 10, 2e-4, 0.75),
}


def their_rate(step: int, name: str) -> float:
    num_clips, batch, num_epochs, num_warmup_epochs, base, _ = PUBLISHED[name]
    steps_per_epoch, rate = num_clips // batch, base * batch / 256
    warmup, total = num_warmup_epochs * steps_per_epoch, num_epochs * steps_per_epoch
    if step < warmup:
        return rate * step / warmup
    progress = (step - warmup) / (total - warmup)
    return MIN_RATE + (rate - MIN_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def their_layer(name: str) -> int:
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else DEPTH + 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_learning_rates_and_decay_equal_audiomosaics_at_each_step(name: str) -> None:
    recipe: Recipe = getattr(recipes, name)()
    num_clips, batch, num_epochs, _, _, decay = PUBLISHED[name]
    total = num_epochs * (num_clips // batch)
    peak, schedule = recipe.train.learning_rate, recipe.train.schedule
    rates = [peak * learning_rate_factor(step, 0, schedule, total) for step in range(total)]
    assert rates == pytest.approx([their_rate(step, name) for step in range(total)], rel=1e-12)
    model = AST(dataclasses.replace(recipe.model, width=24, num_heads=1))
    optimizer = make_optimizer(model, recipe.train)
    theirs = {ours: names[0] for ours, names in AUDIO_VIT.tensor_names(DEPTH, "").items()}
    parameters = dict(model.named_parameters())
    for rate in (rates[7], rates[total // 2], rates[-1]):
        set_learning_rate(optimizer, rate)
        for group in optimizer.param_groups:
            for ours in group["names"]:
                scale = decay ** (DEPTH + 1 - their_layer(theirs[ours]))
                is_decayed = parameters[ours].ndim > 1 and theirs[ours] not in ("cls_token", "pos_embed")
                assert group["lr"] == pytest.approx(rate * scale, rel=1e-12)
                assert group["weight_decay"] == WEIGHT_DECAY * is_decayed
    assert (recipe.train.num_epochs, recipe.train.global_batch_size) == (num_epochs, batch)


@pytest.mark.parametrize("name", PUBLISHED)
def test_306_of_512_patches_remain(name: str) -> None:
    recipe: Recipe = getattr(recipes, name)()
    sampler = DropMaskSampler(recipe.train.regularise, recipe.model, 8, seed=0)
    kept = sampler.draw(0, 5, slice(0, 8), torch.device("cpu")).kept_BK
    assert kept is not None
    rows, columns = kept // 64, kept % 64
    assert kept.shape == (8, 306) == (8, int(64 * 0.8) * int(8 * 0.8))
    for row, column in zip(rows, columns, strict=True):
        assert (len(row.unique()), len(column.unique())) == (6, 51)
    assert len(rows.unique(dim=0)) > 1


def test_the_linear_rule_multiplies_the_learning_rate_by_the_batch() -> None:
    train = recipes.audioset_balanced_modern().train
    larger = scale_batch(train, 4, power=1)
    assert (larger.global_batch_size, larger.learning_rate) == (256, pytest.approx(5e-4))
    assert larger.schedule.num_warmup_steps == train.schedule.num_warmup_steps / 4
