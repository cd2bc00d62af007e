import copy
import dataclasses

import numpy as np
import pytest
import torch

from ast_model.config import ASTConfig, RegulariseConfig, ScheduleConfig, TrainConfig
from ast_model.flops import forward_flops
from ast_model.model import AST, DropMasks
from ast_model.training.optimizer import make_optimizer, set_learning_rate, update_average
from ast_model.training.regularise import DropMaskSampler
from ast_model.training.schedule import learning_rate_factor
from pipeline.errors import ConfigError

CPU = torch.device("cpu")
TINY = ASTConfig(num_classes=4, num_frames=128, freq_stride=16, time_stride=16, width=16, depth=3, num_heads=2)
PASST = RegulariseConfig(patchout_freq=4, patchout_time=40)


def test_patchout_keeps_as_many_tokens_as_passt() -> None:
    base = ASTConfig.base()
    assert PASST.num_kept_patches(base.grid) + 2 == 490
    saved = forward_flops(base) / forward_flops(base, PASST.num_kept_patches(base.grid))
    assert saved == pytest.approx(2.8, abs=0.15)  # "2.8 times fewer FLOPs" (PaSST)


def test_patchout_drops_whole_rows_and_columns_per_clip() -> None:
    source = DropMaskSampler(RegulariseConfig(patchout_freq=3, patchout_time=2), TINY, 6, seed=0)
    kept_BK = source.draw(0, 0, slice(0, 6), CPU).kept_BK
    assert kept_BK is not None
    num_freq, num_time = TINY.grid
    for kept_K in kept_BK:
        grid = torch.zeros(num_freq * num_time).scatter(0, kept_K, 1.0).view(num_freq, num_time)
        assert (grid.sum(dim=0) > 0).sum() == num_time - 2
        assert (grid.sum(dim=1) > 0).sum() == num_freq - 3
        assert grid.sum() == (num_time - 2) * (num_freq - 3)
    assert len({tuple(kept_K.tolist()) for kept_K in kept_BK}) > 1


def test_model_sees_only_the_kept_patches() -> None:
    torch.manual_seed(0)
    model = AST(TINY).eval()
    fbank_BTM = torch.randn(2, 128, 128)
    every_BK = torch.arange(TINY.num_patches).expand(2, -1)
    torch.testing.assert_close(model(fbank_BTM, DropMasks(every_BK)), model(fbank_BTM))
    changed_BTM = fbank_BTM.clone()
    changed_BTM[:, 16:32, :16] += 1  # the second patch
    without_BK = every_BK[:, every_BK[0] != 1]
    torch.testing.assert_close(model(changed_BTM, DropMasks(without_BK)), model(fbank_BTM, DropMasks(without_BK)))
    assert not torch.allclose(model(changed_BTM), model(fbank_BTM))


def test_dropped_branch_leaves_tokens_unchanged_and_preserves_the_mean() -> None:
    source = DropMaskSampler(RegulariseConfig(drop_path=0.4), TINY, 4000, seed=0)
    scale_BL = source.draw(1, 2, slice(0, 4000), CPU).scale_BL
    assert scale_BL is not None
    np.testing.assert_allclose(scale_BL.mean(dim=0), np.ones(6), atol=0.06)
    np.testing.assert_allclose((scale_BL == 0).float().mean(dim=0), [0, 0, 0.2, 0.2, 0.4, 0.4], atol=0.04)
    model = AST(TINY).eval()
    fbank_BTM = torch.randn(1, 128, 128)
    torch.testing.assert_close(
        model.tokens(fbank_BTM, DropMasks(scale_BL=torch.zeros(1, 6))), model.norm(model._embed_patches(fbank_BTM))
    )


def test_masks_depend_only_on_the_position_in_the_global_batch() -> None:
    config = RegulariseConfig(patchout_freq=2, patchout_time=2, drop_path=0.5)
    whole = DropMaskSampler(config, TINY, 8, seed=3).draw(2, 7, slice(0, 8), CPU)
    part = DropMaskSampler(config, TINY, 8, seed=3).draw(2, 7, slice(5, 8), CPU)
    for name in ("kept_BK", "scale_BL"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[5:])
    other = DropMaskSampler(config, TINY, 8, seed=3).draw(2, 8, slice(0, 8), CPU)
    assert not torch.equal(other.kept_BK, whole.kept_BK)  # pyright: ignore[reportArgumentType]


def test_patchout_of_all_patches_is_rejected() -> None:
    with pytest.raises(ConfigError, match=r"8 rows and 8 columns of patches, found --train.regularise.patchout-freq 8"):
        DropMaskSampler(RegulariseConfig(patchout_freq=8), TINY, 8, seed=0)


def test_layer_decay_scales_learning_rates_by_block() -> None:
    model = AST(TINY)
    optimizer = make_optimizer(model, TrainConfig(layer_decay=0.5))
    set_learning_rate(optimizer, 1.0)
    rate_of = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rate_of.keys() == dict(model.named_parameters()).keys()
    expected = {"positions": 1 / 16, "blocks.0.mlp.up.weight": 1 / 8, "blocks.2.attention.out.bias": 1 / 2}
    assert {name: rate_of[name] for name in expected} == expected
    assert rate_of["norm.weight"] == rate_of["head.linear.bias"] == 1
    assert len(make_optimizer(model, TrainConfig()).param_groups) == 1


def test_decoupled_decay_equals_adamw_and_excludes_biases_norms_tokens_and_positions() -> None:
    torch.manual_seed(0)
    ours = AST(ASTConfig.nano(num_classes=3, num_frames=64, depth=1))
    theirs = copy.deepcopy(ours)
    config = TrainConfig(learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.05, decoupled_weight_decay=True)
    groups = [
        {"params": [each for each in theirs.parameters() if each.ndim in (2, 4)], "weight_decay": 0.05},
        {"params": [each for each in theirs.parameters() if each.ndim in (1, 3)], "weight_decay": 0.0},
    ]
    optimizers = (make_optimizer(ours, config), torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True))
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(1, 64, 128)).square().sum().backward()
            optimizer.step()
    for (name, found), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_cosine_schedule_equals_torchs() -> None:
    config = ScheduleConfig("cosine", num_warmup_steps=10, num_steps_per_stair=1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90)
    for step in range(10, 100):
        assert learning_rate_factor(step, 0, config, 100) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert learning_rate_factor(5, 0, config, 100) == pytest.approx(0.5)


def test_running_average_equals_the_mean() -> None:
    states = [{"weight": torch.randn(3)} for _ in range(4)]
    average: dict[str, torch.Tensor] = {}
    for count, state in enumerate(states, start=1):
        update_average(average, state, count)
    torch.testing.assert_close(average["weight"], torch.stack([state["weight"] for state in states]).mean(dim=0))


def test_papers_presets_use_no_regularisation() -> None:
    config = TrainConfig()
    assert config.regularise == RegulariseConfig(0, 0, 0.0)
    assert (config.layer_decay, config.teachers, config.schedule.shape) == (1.0, (), "steps")
    drop_masks = DropMaskSampler(config.regularise, TINY, 4, 0).draw(0, 0, slice(0, 4), CPU)
    assert dataclasses.astuple(drop_masks) == (None, None)
