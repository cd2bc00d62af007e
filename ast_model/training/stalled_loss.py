"""Early warning about a training that learns nothing."""

import logging
import math

from ast_model.training.plan import TrainingPlan

log = logging.getLogger(__name__)

MIN_STEPS = 200
"""Minimum number of steps before a warning."""
MAX_SHARE = 0.98
"""Largest loss that counts as learning, as a share of the loss of guessing.

Slow starts pass: a training on spoken digits was at 0.94 when the warning was due, and its final accuracy was 0.97.
"""


class StalledLoss:
    """Warns once if the cross-entropy stays at log(classes), its value for guessing.

    Binary cross-entropy has no such value: it falls at first even if a model learns only how rare the classes are.
    """

    def __init__(self, plan: TrainingPlan, num_classes: int):
        self._guessing = math.log(num_classes)
        learning_starts = plan.config.schedule.num_warmup_steps + MIN_STEPS // 2
        self._last_step = min(max(MIN_STEPS, learning_starts), plan.total_steps)
        self._loss_sum, self._num_steps = 0.0, 0
        self._is_decided = plan.config.loss != "ce"

    def add(self, loss: float, num_taken: int, num_steps_done: int) -> None:
        """Add the mean loss of a window of steps. `num_steps_done` counts from the start of the run."""
        if self._is_decided or not num_taken:
            return
        if num_steps_done > 3 * self._last_step // 4:  # the mean over several windows, because each is noisy
            self._loss_sum += loss * num_taken
            self._num_steps += num_taken
        if num_steps_done >= self._last_step:
            self._is_decided = True
            self._warn(self._loss_sum / self._num_steps, num_steps_done)

    def _warn(self, loss: float, num_steps_done: int) -> None:
        if loss > MAX_SHARE * self._guessing:
            log.warning(
                "after %d steps the loss is %.2f, as for guessing (the logarithm of the number of classes is %.2f)."
                " Stop the training and try a lower learning rate, no mixup, less masking or more epochs, or start from"
                " trained weights (--init)",
                *(num_steps_done, loss, self._guessing),
            )
