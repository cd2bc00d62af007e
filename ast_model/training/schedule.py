"""The learning rate over a training run, as AST's official code sets it: stairs up, then a decay every few epochs."""

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes; the defaults are those of the full AudioSet."""

    shape: Literal["steps", "cosine"] = "steps"
    """After the warm-up: a decay every few epochs (AST), or half a cosine down to 0 at the end of the run."""
    num_warmup_steps: int = 1000
    """Steps over which the learning rate climbs from 0; 0 for no warm-up."""
    num_steps_per_stair: int = 50
    """Steps of the warm-up for which the learning rate stays the same."""
    num_epochs_before_decay: int = 2
    """Epochs before the learning rate decays for the first time."""
    num_epochs_per_decay: int = 1
    """Epochs from one decay to the next."""
    decay_factor: float = 0.5
    """What each decay multiplies the learning rate by."""
    max_decays: int | None = None
    """Decays after which the learning rate stays the same; none: it decays to the end."""

    def __post_init__(self) -> None:
        if min(self.num_steps_per_stair, self.num_epochs_before_decay, self.num_epochs_per_decay) < 1:
            raise ConfigError(f"A stair and the epochs to and between decays must be at least 1, but found {self}.")
        if self.num_warmup_steps < 0 or (self.max_decays is not None and self.max_decays < 0):
            raise ConfigError(f"num_warmup_steps and max_decays can't be negative, but found {self}.")
        if not 0 < self.decay_factor <= 1:
            raise ConfigError(f"decay_factor must be above 0 and at most 1, but is {self.decay_factor}.")


def learning_rate_factor(step: int, epoch: int, config: ScheduleConfig, num_steps: int = 0) -> float:
    """Return what to multiply the learning rate by.

    step: optimizer steps taken so far, over all epochs. epoch: epochs completed so far. Both are 0 at the start, so
    the first stair is 0: with it AST's first steps change nothing but Adam's moments. num_steps: those of the whole
    run, for the cosine.
    """
    if config.shape == "cosine":
        return _warmup_factor(step, config) * _cosine_factor(step, config, num_steps)
    return _warmup_factor(step, config) * config.decay_factor ** _num_decays(epoch, config)


def _cosine_factor(step: int, config: ScheduleConfig, num_steps: int) -> float:
    num_falling = max(1, num_steps - config.num_warmup_steps)
    progress = min(1.0, max(0.0, (step - config.num_warmup_steps) / num_falling))
    return 0.5 * (1 + math.cos(math.pi * progress))


def _warmup_factor(step: int, config: ScheduleConfig) -> float:
    if step >= config.num_warmup_steps:
        return 1.0
    return step // config.num_steps_per_stair * config.num_steps_per_stair / config.num_warmup_steps


def _num_decays(epoch: int, config: ScheduleConfig) -> int:
    if epoch < config.num_epochs_before_decay:
        return 0
    num_decays = (epoch - config.num_epochs_before_decay) // config.num_epochs_per_decay + 1
    return num_decays if config.max_decays is None else min(num_decays, config.max_decays)
