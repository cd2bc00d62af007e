"""Adam over the model's parameters, with a learning rate per layer where asked for, and its state by name."""

from typing import Any

import torch
from torch import Tensor

from ast_model.config import TrainConfig
from ast_model.model import AST

ADAM_BETAS = (0.95, 0.999)
State = dict[str, Tensor]


def make_optimizer(model: AST, config: TrainConfig) -> torch.optim.Adam:
    """Return Adam. Its fused form can leave out a step on the device, without anybody waiting for the reason."""
    groups: dict[float, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        scale = config.layer_decay ** (model.config.depth + 1 - _layer_of(name, model.config.depth))
        group = groups.setdefault(scale, {"params": [], "names": [], "scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return torch.optim.Adam(
        list(groups.values()),
        lr=config.learning_rate,
        betas=ADAM_BETAS,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _layer_of(name: str, depth: int) -> int:
    """Return 0 for what makes the tokens, 1 … depth for the blocks, depth + 1 for what comes after."""
    first, *rest = name.split(".")
    if first == "blocks":
        return int(rest[0]) + 1
    return depth + 1 if first in ("norm", "head") else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """Return the optimiser's state as tensors named `{parameter}/{slot}`."""
    return {
        f"{name}/{slot}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Undo `optimizer_state`."""
    whole = optimizer.state_dict()
    names = [name for group in whole["param_groups"] for name in group["names"]]
    numbers = [number for group in whole["param_groups"] for number in group["params"]]
    number_of = dict(zip(names, numbers, strict=True))
    slots: dict[int, State] = {}
    for path, value in state.items():
        name, slot = path.rsplit("/", 1)
        slots.setdefault(number_of[name], {})[slot] = value
    optimizer.load_state_dict({**whole, "state": slots})
