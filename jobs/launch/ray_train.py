"""Training on Ray Train: as many workers as asked for, each a rank of one loop."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import LoggingConfig
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ast_model.distributed import BACKENDS, World, join_world
from ast_model.training.job import StopSignal
from ast_model.training.reporter import Metrics
from jobs.config import RayConfig
from jobs.launch.cli import configure_logging
from jobs.launch.runs import RunSettings, history_name, train_rank
from pipeline.errors import AudioTaggingError, StoppedError, StoreError, TrainingError

log = logging.getLogger(__name__)

ASK_EVERY_S = 1.0
QUICK_START_S = 5.0
"""What a wait for workers may take before it is said."""
GROW_EVERY_S = 60.0
"""How long a training with fewer workers than it may have goes on before it looks for more."""
GROUP_START_TIMEOUT_S = "30"
"""How long Ray Train waits for its workers before it looks again at what the cluster has."""


@ray.remote(num_cpus=0)
class DriverMailbox:
    """Where driver and workers leave each other notes."""

    def __init__(self) -> None:
        self._is_stopping = False
        self._error: AudioTaggingError | None = None

    def ask_to_stop(self) -> None:
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping

    def post(self, error: AudioTaggingError) -> None:
        self._error = error

    def error(self) -> AudioTaggingError | None:
        return self._error


class RayStopSignal(StopSignal):
    """Hears of the driver's wish to stop, and of nodes that will be taken away."""

    def __init__(self, board: Any, world: World, is_watching: bool):
        self.board, self.world, self.is_watching = board, world, is_watching
        self._answer: ray.ObjectRef | None = None
        self._asked, self._known_danger = 0.0, None

    def is_stopping(self) -> bool:
        """Answer without waiting. The main rank asks for all."""
        if not self.world.is_main:
            return False
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            answer, self._answer = self._answer, None
            return ray.get(answer)
        if self._answer is None and time.monotonic() - self._asked > ASK_EVERY_S:
            self._asked, self._answer = time.monotonic(), self.board.is_stopping.remote()
        return False

    def preemption_imminent(self) -> bool:
        if not self.is_watching:
            return False
        danger = ray.train.get_preemption_info()
        is_new = danger is not None and danger != self._known_danger
        self._known_danger = danger
        return is_new


def train_on_ray(settings: RunSettings, config: RayConfig) -> list[Metrics]:
    """Train and return the metrics of each epoch. Needs a running Ray.

    On SIGTERM the workers save and leave, and StoppedError is raised.
    """
    _wait_for_workers(config)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = DriverMailbox.options(scheduling_strategy=here).remote()  # pyright: ignore[reportFunctionMemberAccess]
    trainer = _trainer(settings, config, board)
    try:
        with _stopping_on_sigterm(board):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _told(board) or TrainingError(f"the workers failed for good: {error}") from error
    if (told := _told(board)) is not None:
        raise told
    return settings.store.read_json(history_name(settings.run))


def _told(board: Any) -> AudioTaggingError | None:
    return ray.get(board.error.remote())


def _trainer(settings: RunSettings, config: RayConfig, board: Any) -> TorchTrainer:
    fewest, most = config.num_workers
    is_watching = len(ray.nodes()) > 1  # a cluster of one node loses the driver with it
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(is_watching)))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", GROUP_START_TIMEOUT_S)
    return TorchTrainer(
        _train_worker,
        train_loop_config={"settings": settings, "board": board, "is_watching": is_watching},
        torch_config=TorchConfig(backend=BACKENDS["cuda" if config.use_gpu else "cpu"]),
        scaling_config=ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu=config.use_gpu,
            resources_per_worker=config.worker_resources,
            elastic_resize_monitor_interval_s=GROW_EVERY_S,
        ),
        run_config=RunConfig(
            name=settings.run,
            storage_path=settings.store.url(f"runs/{settings.run}/ray"),
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _wait_for_workers(config: RayConfig) -> None:
    """Ask the cluster for the fewest workers, so that it may grow; raise TrainingError if it can't."""
    fewest, _ = config.num_workers
    group = placement_group([config.worker_resources] * fewest)
    wait_s = config.start_timeout_s
    try:
        if group.wait(min(QUICK_START_S, wait_s)):
            return
        hint = "; to train without a GPU: --no-use-gpu" if config.use_gpu else ""
        log.warning("waiting up to %.0f s for %s; there is %s%s", wait_s, _wish(config), _cluster(), hint)
        if not group.wait(max(0.0, wait_s - QUICK_START_S)):
            raise TrainingError(
                f"expected {_wish(config)} within {wait_s:.0f} s, found {_cluster()}; lower --workers, add nodes, or"
                " free what others use"
            )
    finally:
        remove_placement_group(group)


def _wish(config: RayConfig) -> str:
    fewest, _ = config.num_workers
    each = " and ".join(f"{count:.0f} {name}" for name, count in config.worker_resources.items())
    return f"{fewest} workers of {each} each"


def _cluster() -> str:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources, free = ray.cluster_resources(), ray.available_resources()
    have = ", ".join(f"{resources.get(name, 0):.0f} {name} ({free.get(name, 0):.0f} free)" for name in ("CPU", "GPU"))
    return f"a cluster of {len(nodes)} nodes with {have}"


@contextmanager
def _stopping_on_sigterm(board: Any) -> Iterator[None]:
    """Turn SIGTERM, which `ray job stop` sends too, into a wish that the workers hear."""

    def ask(signum: int, frame: object) -> None:
        log.warning("asked to stop: the workers save and leave")
        board.ask_to_stop.remote()

    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(ValueError):  # not the main thread: whoever runs us there takes care of signals
        signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


def _train_worker(loop_config: Mapping[str, Any]) -> None:
    """Join a run. An error that a person can repair is posted, so that the workers don't try it over and over."""
    configure_logging()
    settings, board = loop_config["settings"], loop_config["board"]
    if ray.get(board.error.remote()) is not None:
        return
    try:
        with join_world() as world:
            train_rank(settings, world, RayStopSignal(board, world, loop_config["is_watching"]))
    except StoreError:
        raise  # storage may come back
    except AudioTaggingError as error:
        ray.get(board.post.remote(error))
        if not isinstance(error, StoppedError):
            raise
