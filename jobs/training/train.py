"""Train on an existing snapshot, on Ray Train or under torchrun."""

import dataclasses
import os
import signal

from ast_model.distributed import join_world
from ast_model.tracking.server import connect
from ast_model.training.checks import check_ranks
from ast_model.training.job import Launcher
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import resolve_root
from jobs.command_line.notifications import Summary, notifying
from jobs.command_line.run_names import new_run_name
from jobs.training.initial_weights import open_initial_weights
from jobs.training.ray_train import train_on_ray
from jobs.training.runs import TrackedJob, begin_run, end_run_on_exit, resume_run, train_rank
from jobs.training.settings import TrainJobConfig
from jobs.training.training_clips import select_training_clips
from pipeline.cluster.session import ray_session
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store


def train(config: TrainJobConfig) -> None:
    """Start or resume a run."""
    is_under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    is_main = not is_under_torchrun or os.environ["RANK"] == "0"
    with notifying(config.notify if is_main else "", "train") as summary:
        if is_under_torchrun:
            history = _train_under_torchrun(config, summary)
        else:
            check_ranks(config.train, config.ray.num_workers[1])
            job = _open_run(config, summary)
            with end_run_on_exit(job), ray_session():  # this order also ends the run if Ray can't start
                history = train_on_ray(job, config.ray)
        if history:
            summary["metrics"] = history[-1]
            print(f"\n{history[-1]}")


def _train_under_torchrun(config: TrainJobConfig, summary: Summary) -> list[Metrics]:
    """Train as one of torchrun's ranks. Only the main rank returns the history."""
    launcher = TorchrunLauncher()
    with join_world(config.ray.device_type) as world:
        job = world.broadcast_object(_open_run(config, summary) if world.is_main else None)
        if not world.is_main:
            train_rank(job, world, launcher)
            return []
        with end_run_on_exit(job):
            return train_rank(job, world, launcher)


class TorchrunLauncher(Launcher):
    """Treats SIGTERM to this process as a stop request."""

    def __init__(self) -> None:
        self._is_stopping = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: object) -> None:
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping


def _open_run(config: TrainJobConfig, summary: Summary) -> TrackedJob:
    store = Store(resolve_root(config.root))
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    connect(store)
    if config.resume:
        job = resume_run(config.resume, store, config, config.snapshot)
    else:
        snapshot = select_training_clips(load_snapshot(store, config.snapshot or None), config.selection, config.train)
        job = begin_run(config, snapshot, new_run_name(config.preset))
    summary |= {"run": job.run, "snapshot": job.snapshot.snapshot_id}
    return job
