"""Single-rank trainings in the test process."""

from collections.abc import Callable

import torch

from ast_model.checkpoints.checkpoint import Tensors, newest_checkpoint
from ast_model.distributed import World
from ast_model.training.job import Launcher, TrainingJob
from ast_model.training.trainer import Trainer

ALONE = World(0, 1, torch.device("cpu"))
NUM_STEPS = 6
"""Steps per epoch of jobs from `make_job`."""
MakeJob = Callable[..., TrainingJob]
"""Type of the fixture `make_job`."""


def train(job: TrainingJob, launcher: Launcher | None = None) -> tuple[Trainer, list[dict[str, float]]]:
    trainer = Trainer(job, ALONE, launcher)
    return trainer, trainer.run()


def final_state(job: TrainingJob) -> dict[str, Tensors]:
    checkpoint = newest_checkpoint(job.snapshot.store, job.folder)
    assert checkpoint is not None
    return {part: getattr(checkpoint, part) for part in ("model", "optimizer", "average")}
