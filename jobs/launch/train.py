"""Training on a snapshot that is there, on Ray Train or as one of torchrun's ranks."""

import dataclasses
import os
import signal

from ast_model.distributed import join_world
from ast_model.tracking.server import check_server, tracking_uri
from ast_model.training.checks import check_ranks
from ast_model.training.job import StopSignal
from ast_model.training.reporter import Metrics
from jobs.config import TrainJobConfig
from jobs.launch.cli import resolve_root
from jobs.launch.initial_weights import open_initial_weights
from jobs.launch.ray_train import train_on_ray
from jobs.launch.runs import RunSettings, begin_run, ending_tracked, new_run_name, resume_run, train_rank
from pipeline.cluster import ray_session
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store


def train(config: TrainJobConfig) -> None:
    """Train a new run, or go on with one."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        history = _train_here(config)
    else:
        check_ranks(config.train, config.ray.num_workers[1])
        settings = _open_run(config)
        with ray_session(), ending_tracked(settings):
            history = train_on_ray(settings, config.ray)
    if history:
        print(f"\n{history[-1]}")


def _train_here(config: TrainJobConfig) -> list[Metrics]:
    """Train as one of torchrun's ranks; only the main one returns the history."""
    watch = SigtermStopSignal()
    with join_world() as world:
        settings = world.broadcast_object(_open_run(config) if world.is_main else None)
        if not world.is_main:
            train_rank(settings, world, watch)
            return []
        with ending_tracked(settings):
            return train_rank(settings, world, watch)


class SigtermStopSignal(StopSignal):
    """Hears SIGTERM in this process."""

    def __init__(self) -> None:
        self._is_stopping = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, signum: int, frame: object) -> None:
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping


def _open_run(config: TrainJobConfig) -> RunSettings:
    store = Store(resolve_root(config.root))
    check_server(tracking_uri(store))
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    if config.resume:
        return resume_run(config.resume, store, config)[0]
    return begin_run(config, load_snapshot(store, config.snapshot or None), new_run_name(config.preset))
