"""Means of a training's weights: over its epochs, and exponential over its steps."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ast_model.checkpoints.checkpoint import State


def update_average(average: State, weights: Mapping[str, Tensor], count: int) -> None:
    """Let `average` be the mean of `count` states, of which `weights` is the last."""
    for name, value in weights.items():
        if count == 1:
            average[name] = value.detach().clone()
        else:
            average[name].lerp_(value, 1 / count)


def start_ema(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def update_ema(ema: State, model: nn.Module, decay: float, num_updates: int) -> None:
    """Move `ema` towards the model's weights; at first faster, since the start tells nothing."""
    decay = min(decay, (1 + num_updates) / (10 + num_updates))
    weights = model.state_dict()
    get_ema_multi_avg_fn(decay)([ema[name] for name in weights], list(weights.values()), num_updates)
