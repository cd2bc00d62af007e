"""Train on Ray Train, with one rank per worker."""

import dataclasses
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import ray
import ray.train
from ray.exceptions import RayTaskError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2.api.config import LoggingConfig
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.distributed import ANSWER_TIMEOUT_S, BACKENDS, check_cuda, join_world, select_gloo_interface
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import configure_logging
from jobs.command_line.settings import RayConfig
from jobs.training.ray_launcher import DriverMailbox, RayLauncher
from jobs.training.runs import TrackedJob, train_rank
from pipeline.cluster.placement import ON_TRAIN_NODES, POOL
from pipeline.cluster.session import has_dashboard
from pipeline.errors import AudioTaggingError, ConfigError, StoppedError, StoreError, TrainingError, WorkerError
from pipeline.store.layout import RUNS, RunFiles

log = logging.getLogger(__name__)

QUICK_START_S = 5.0
"""Seconds to wait for workers before logging a warning."""
GROW_EVERY_S = 60.0
"""Seconds between checks for more workers while fewer than the maximum are in use."""
GROUP_START_TIMEOUT_S = "30"
"""Seconds for which Ray Train waits for its workers before it checks the cluster's resources again."""

POLL_S = "0.5"
"""Seconds between Ray Train's polls of its workers. A rank can't report until Ray has fetched its previous report, so
Ray's default of 2 s would slow down shorter epochs."""

SAVE_WITHIN_S = 12.0
"""Seconds after SIGTERM within which workers must save. Ending Ray and the run in MLflow takes some seconds more."""

EXIT_WITHIN_S = 3.0
"""Seconds within which workers must exit after the end of Ray."""

GPU_CHECK: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1, "label_selector": ON_TRAIN_NODES}
"""Resources of the task that checks whether torch can use a GPU."""


class NodeTorchConfig(TorchConfig):
    """Connects torch's process group through the network interface that Ray uses on each node."""

    @property
    def backend_cls(self) -> Any:
        class NodeBackend(super().backend_cls):
            def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
                # Ray Train creates the process group in this call, before it calls our training function.
                _select_interfaces(worker_group)
                super().on_start(worker_group, backend_config)

        return NodeBackend


def _select_interfaces(worker_group: Any) -> None:
    """Select each worker's network interface. Raises WorkerError with the workers that do not answer in time."""
    answers = worker_group.execute_async(_select_interface)
    ready, silent = ray.wait(answers, num_returns=len(answers), timeout=ANSWER_TIMEOUT_S)
    if silent:
        nodes = [worker.metadata.node_ip for worker in worker_group.get_workers()]
        names = ", ".join(f"rank {rank} on {nodes[rank]}" for rank, ref in enumerate(answers) if ref in silent)
        raise WorkerError(f"no answer within {ANSWER_TIMEOUT_S:.0f} s from {names}; starting the workers again")
    ray.get(ready)


def _select_interface() -> None:
    select_gloo_interface(ray.util.get_node_ip_address())


def train_on_ray(job: TrackedJob, config: RayConfig) -> list[Metrics]:
    """Train on a running Ray, and return the metrics of each epoch.

    Raises StoppedError after SIGTERM, once the workers have written a checkpoint, ConfigError if the workers can't use
    their GPUs, and TrainingError if they fail repeatedly without a new checkpoint.
    """
    config = choose_gpu(config)
    _wait_for_workers(config)
    if config.use_gpu:
        _check_gpu()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    mailbox: Any = DriverMailbox.options(scheduling_strategy=here).remote()  # pyright: ignore[reportFunctionMemberAccess]
    with _stopping_on_sigterm(mailbox, job.run):
        while True:
            found = list_checkpoints(job.store, job.folder)
            num_before: int = ray.get(mailbox.num_attempts.remote())
            try:
                _trainer(job, config, mailbox).fit()
                error = None
            except ray.train.TrainingFailedError as failure:
                error = failure
            posted: AudioTaggingError | None = ray.get(mailbox.error.remote())
            if posted is not None:
                raise posted
            if error is None:
                return job.store.read_json(RunFiles(job.run).history)
            # Ray Train counts all failures of a run. A month on spot nodes has many, and each costs only minutes. Only
            # failures without progress should end the run, so restart the count after each new checkpoint.
            if list_checkpoints(job.store, job.folder) == found:
                num_attempts: int = ray.get(mailbox.num_attempts.remote())
                failed = f"failed {num_attempts - num_before} times" if num_attempts > num_before else "could not start"
                raise TrainingError(
                    f"the workers {failed} without a new checkpoint (allow more with --max-failures). The last"
                    f" failure: {error}"
                ) from error
            log.warning("the workers failed, but made progress; restarting them")


def choose_gpu(config: RayConfig) -> RayConfig:
    """Decide whether to use GPUs. By default they are used if the cluster has enough of them."""
    if config.use_gpu is not None:
        return config
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    use_gpu = num_gpus >= config.num_workers[0]
    where, other = ("GPUs", "--no-use-gpu") if use_gpu else ("the CPU", "--use-gpu waits for one")
    log.info("training on %s: the cluster has %d GPUs (%s)", where, num_gpus, other)
    return dataclasses.replace(config, use_gpu=use_gpu)


def _check_gpu() -> None:
    """Raise ConfigError if torch can't use a worker's GPU. Ray Train would retry endlessly."""
    try:
        ray.get(ray.remote(**GPU_CHECK)(check_cuda).remote())
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, ConfigError) else error from None


def _trainer(job: TrackedJob, config: RayConfig, mailbox: Any) -> TorchTrainer:
    _forget_earlier_reports(job)
    fewest, most = config.num_workers
    is_watching = len(ray.nodes()) > 1  # a single node is preempted together with the driver
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", str(int(is_watching)))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", GROUP_START_TIMEOUT_S)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)
    # Enable the dashboard's Train page if there is a dashboard. Without one, Ray would log errors.
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", str(int(has_dashboard())))
    return TorchTrainer(
        _train_worker,
        # Pickle here and load in `_train_worker`, which also reports errors while loading the snapshot.
        train_loop_config={
            "job": pickle.dumps(job),
            "mailbox": mailbox,
            "device_type": config.device_type,
            "is_watching": is_watching,
        },
        torch_config=NodeTorchConfig(backend=BACKENDS[config.device_type]),
        scaling_config=ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu=bool(config.use_gpu),
            resources_per_worker=config.worker_resources,
            label_selector=ON_TRAIN_NODES,
            elastic_resize_monitor_interval_s=GROW_EVERY_S,
        ),
        run_config=RunConfig(
            name=job.run,
            storage_path=job.store.url(RUNS),
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )


def _forget_earlier_reports(job: TrackedJob) -> None:
    """Remove Ray Train's record of checkpoints, which would prevent a start if any of them was deleted.

    Runs keep only the newest and the best checkpoints, and resume from their own records.
    """
    record = f"{RunFiles(job.run).folder}/{CHECKPOINT_MANAGER_SNAPSHOT_FILENAME}"
    if job.store.exists(record):
        job.store.remove(record)


def _wait_for_workers(config: RayConfig) -> None:
    """Request the minimum number of workers, so that the cluster can scale up. Raises TrainingError on timeout."""
    fewest, _ = config.num_workers
    group = placement_group([config.worker_resources] * fewest, bundle_label_selector=[ON_TRAIN_NODES] * fewest)
    wait_s = config.start_timeout_s
    try:
        if group.wait(min(QUICK_START_S, wait_s)):
            return
        hint = "; to train without a GPU: --no-use-gpu" if config.use_gpu else ""
        log.warning("waiting up to %.0f s for %s; there is %s%s", wait_s, _demand(config), _cluster(), hint)
        if not group.wait(max(0.0, wait_s - QUICK_START_S)):
            raise TrainingError(
                f"expected {_demand(config)} within {wait_s:.0f} s, found {_cluster()}; lower --workers, add nodes, or"
                " free resources of other jobs"
            )
    finally:
        remove_placement_group(group)


def _demand(config: RayConfig) -> str:
    fewest, _ = config.num_workers
    each = " and ".join(f"{count:.0f} {name}" for name, count in config.worker_resources.items())
    return f"{fewest} workers of {each} each"


def _cluster() -> str:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    resources, free = ray.cluster_resources(), ray.available_resources()
    pools = sorted({node["Labels"].get(POOL, "") for node in nodes} - {""})
    have = ", ".join(f"{resources.get(name, 0):.0f} {name} ({free.get(name, 0):.0f} free)" for name in ("CPU", "GPU"))
    where = f", in the pools {' and '.join(pools)}" if pools else ""
    return f"a cluster of {len(nodes)} nodes with {have}{where}"


@contextmanager
def _stopping_on_sigterm(mailbox: Any, run: str) -> Iterator[None]:
    """Convert SIGTERM, which `ray job stop` also sends, to a stop request for the workers.

    Raises StoppedError if they do not save in time, because batch systems kill a job about 30 s after SIGTERM.
    """
    is_late = threading.Event()

    def ask(signum: int, frame: object) -> None:
        log.warning("asked to stop: workers are writing a checkpoint and exiting")
        mailbox.ask_to_stop.remote()
        signal.setitimer(signal.ITIMER_REAL, SAVE_WITHIN_S)

    def abandon(signum: int, frame: object) -> None:
        is_late.set()
        raise KeyboardInterrupt  # Ray's calls end early only for this exception

    try:
        with _signal_handlers({signal.SIGTERM: ask, signal.SIGALRM: abandon}):
            yield
    except KeyboardInterrupt as error:
        if not is_late.is_set():
            raise
        _end_ray()
        raise StoppedError(
            f"asked to stop, but run {run} did not save its current step within {SAVE_WITHIN_S:.0f} s; to resume it"
            f" from its last checkpoint: --resume {run}"
        ) from error


def _end_ray() -> None:
    """End a local Ray and its workers. A worker that still trained would hold the lock of its run in MLflow."""
    processes = psutil.Process().children(recursive=True)
    ray.shutdown()
    psutil.wait_procs(processes, timeout=EXIT_WITHIN_S)


@contextmanager
def _signal_handlers(handlers: Mapping[int, Callable[[int, object], None]]) -> Iterator[None]:
    """Install signal handlers, and restore the earlier handlers on exit. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _train_worker(loop_config: Mapping[str, Any]) -> None:
    """Train one rank. Errors that need a person are posted to the driver, so that workers do not retry."""
    configure_logging()
    mailbox = loop_config["mailbox"]
    if ray.get(mailbox.error.remote()) is not None:
        return
    try:
        with join_world(loop_config["device_type"]) as world:
            if world.is_main:
                ray.get(mailbox.count_attempt.remote())
            job = pickle.loads(loop_config["job"])
            launcher = RayLauncher(mailbox, world, loop_config["is_watching"])
            train_rank(job, world, launcher)
    except (StoreError, WorkerError):
        raise  # retry: storage and hosts may recover
    except AudioTaggingError as error:
        ray.get(mailbox.post_error.remote(error))
        if not isinstance(error, StoppedError):
            raise
