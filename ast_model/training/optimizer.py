"""Adam with layer-wise learning rates and a state keyed by parameter name, and the averaging of weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ast_model.checkpoints.checkpoint import Tensors
from ast_model.config import TrainConfig
from ast_model.model import AST

_NOT_DECAYED = ("class_token", "distillation_token", "positions")


def make_optimizer(model: AST, config: TrainConfig) -> torch.optim.Adam:
    """Return Adam or AdamW, with one parameter group per learning rate and weight decay."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        scale = config.layer_decay ** (model.config.depth + 1 - _layer_of(name, model.config.depth))
        # Exempt biases, LayerNorm weights, tokens and positions from AdamW's decay, which would pull them to 0. AST's
        # L2 penalty covers all parameters.
        decays = not config.decoupled_weight_decay or (parameter.ndim > 1 and name not in _NOT_DECAYED)
        new = {"params": [], "names": [], "scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
        group = groups.setdefault((scale, decays), new)
        group["params"].append(parameter)
        group["names"].append(name)
    return torch.optim.Adam(
        list(groups.values()),
        lr=config.learning_rate,
        betas=config.betas,
        decoupled_weight_decay=config.decoupled_weight_decay,
        # Fused Adam can skip a step on the device, so the CPU need not wait for the gradient norm.
        fused=True,
    )


def _layer_of(name: str, depth: int) -> int:
    """Return 0 for the patch embedding, 1 … depth for the blocks, depth + 1 for other norms and the head."""
    first, *rest = name.split(".")
    if first == "blocks":
        return int(rest[0]) + 1
    # The norm before the first block learns at the full rate, as in AudioMosaic's code.
    return depth + 1 if first in ("input_norm", "norm", "head") else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tensors:
    """Return the optimizer's state as tensors named `{parameter}/{slot}`."""
    return {
        f"{name}/{slot}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Tensors) -> None:
    """Restore a state from `optimizer_state` by name, since torch's indices change with the parameter groups."""
    whole = optimizer.state_dict()
    names = [name for group in whole["param_groups"] for name in group["names"]]
    numbers = [number for group in whole["param_groups"] for number in group["params"]]
    number_of = dict(zip(names, numbers, strict=True))
    slots: dict[int, Tensors] = {}
    for path, value in state.items():
        name, slot = path.rsplit("/", 1)
        slots.setdefault(number_of[name], {})[slot] = value
    optimizer.load_state_dict({**whole, "state": slots})


def update_average(average: Tensors, weights: Mapping[str, Tensor], count: int) -> None:
    """Update a running mean in place. count: number of states in the mean, including `weights`."""
    for name, value in weights.items():
        if count == 1:
            average[name] = value.detach().clone()
        else:
            average[name].lerp_(value, 1 / count)
