"""Train on Ray Train: as many workers as asked for, each a rank of one loop."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ast_model.config import TrainConfig
from ast_model.model import ASTConfig
from ast_model.tracking import TrackedRun
from ast_model.train import Job, Trainer
from ast_model.world import join_world
from jobs.cli import configure_logging
from pipeline.errors import AudioTaggingError, TrainingError
from pipeline.snapshot import load_snapshot
from pipeline.storage import Store

log = logging.getLogger(__name__)
Metrics = dict[str, float]


@dataclass(frozen=True)
class RayConfig:
    """Who trains."""

    num_workers: int = 2
    """Ranks, each with one CPU or one GPU."""
    use_gpu: bool = False
    """Give each rank a GPU."""
    max_failures: int = 3
    """How often the training starts again from its newest checkpoint after a worker or node was lost."""


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to join a training; small, and picklable."""

    store: Store
    snapshot_id: str
    run: str
    model: ASTConfig
    train: TrainConfig
    tracker: TrackedRun


def train_on_ray(settings: WorkerSettings, config: RayConfig) -> list[Metrics]:
    """Train and return the metrics of each epoch. Needs a running Ray."""
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=config.use_gpu),
        run_config=RunConfig(
            name=settings.run,
            storage_path=settings.store.url(f"runs/{settings.run}/ray"),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    return settings.store.read_json(f"runs/{settings.run}/history.json")


def _train_worker(loop_config: Mapping[str, Any]) -> None:
    configure_logging()
    settings: WorkerSettings = loop_config["settings"]
    with join_world() as world:
        snapshot = load_snapshot(settings.store, settings.snapshot_id)
        job = Job(settings.train, settings.model, snapshot, settings.run, settings.tracker)
        history = Trainer(job, world).run(on_epoch=ray.train.report)
        if world.is_main:
            settings.store.write_json(f"runs/{settings.run}/history.json", history)


def _cause(error: ray.train.TrainingFailedError) -> Exception:
    """Return the workers' own error if a person can mend it."""
    for cause in getattr(error, "worker_failures", {}).values():
        if isinstance(cause, AudioTaggingError):
            return cause
    return TrainingError(f"the workers failed for good: {error}")
