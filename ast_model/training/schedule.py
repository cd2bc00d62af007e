"""Learning-rate schedule of AST's official code: a warm-up in stairs, then a decay every few epochs."""

import math

from ast_model.config import ScheduleConfig


def learning_rate_factor(step: int, epoch: int, config: ScheduleConfig, num_steps: int = 0) -> float:
    """Return the learning rate of the next step, relative to the peak.

    step: optimizer steps taken so far, over all epochs. epoch: epochs completed so far. num_steps: steps of the whole
    run, for the cosine shape. As in AST, the first stair is 0, so the first steps update only Adam's moments.
    """
    if config.shape == "cosine":
        return _warmup_factor(step, config) * _cosine_factor(step, config, num_steps)
    return _warmup_factor(step, config) * config.decay_factor ** _num_decays(epoch, config)


def _cosine_factor(step: int, config: ScheduleConfig, num_steps: int) -> float:
    num_falling = max(1, num_steps - config.num_warmup_steps)
    progress = min(1.0, max(0.0, (step - config.num_warmup_steps) / num_falling))
    return config.final_factor + (1 - config.final_factor) * 0.5 * (1 + math.cos(math.pi * progress))


def _warmup_factor(step: int, config: ScheduleConfig) -> float:
    if step >= config.num_warmup_steps:
        return 1.0
    return step // config.num_steps_per_stair * config.num_steps_per_stair / config.num_warmup_steps


def _num_decays(epoch: int, config: ScheduleConfig) -> int:
    if epoch < config.num_epochs_before_decay:
        return 0
    num_decays = (epoch - config.num_epochs_before_decay) // config.num_epochs_per_decay + 1
    return num_decays if config.max_decays is None else min(num_decays, config.max_decays)
