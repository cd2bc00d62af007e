"""Check and open teachers' scores for the training clips."""

import logging

from ast_model.teachers.store import Teachers
from ast_model.training.plan import TrainingPlan
from pipeline.errors import MismatchError

log = logging.getLogger(__name__)


def check_teachers(plan: TrainingPlan) -> None:
    """Log how many training clips the teachers have scored. Raises MismatchError if there are none."""
    if not plan.config.teachers:
        return
    num_clips, names = len(plan.train_rows), ", ".join(plan.config.teachers)
    num_taught = _load_teachers(plan).num_taught
    if not num_taught:
        raise MismatchError(
            f"{names} scored none of the training clips ({', '.join(plan.config.train_splits)}); import scores of"
            " these clips, or drop --train.teachers"
        )
    log.info(
        "%s scored %d of %d training clips (%.1f %%); the other %d have only their labels as targets",
        *(names, num_taught, num_clips, 100 * num_taught / num_clips, num_clips - num_taught),
    )


def open_teachers(plan: TrainingPlan) -> Teachers | None:
    """Open the scores of the training clips, through the node's cache if the store is remote."""
    return _load_teachers(plan).open(plan.config.cache) if plan.config.teachers else None


def _load_teachers(plan: TrainingPlan) -> Teachers:
    return Teachers(plan.snapshot, plan.train_rows, plan.config.teachers)
