"""Join a running Ray cluster, or start a local one."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import ray
from ray._private.worker import get_dashboard_url
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import ConfigError, describe

LOOPBACK = "127."
ANSWER_TIMEOUT_S = 8.0
LOCAL_OBJECT_STORE_BYTES = 200 * 2**20
"""Size of a local object store in bytes. It is small because the store only holds plans, paths and reports, and no
audio."""


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Join the cluster in `RAY_ADDRESS`, which Ray Jobs sets, or run a local cluster within the context.

    Raises ConfigError if no cluster responds at the address, if the cluster can't be joined, or if the path of the
    temporary folder is too long for Ray.
    """
    if ray.is_initialized():
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        check_cluster_answers(address)
        _join_cluster(address)
    else:
        _start_local_ray(num_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def check_cluster_answers(address: str, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
    """Raise ConfigError if no gRPC server responds at the address. Without this check, `ray.init` would silently retry
    for minutes.

    `auto` means the cluster that was started last on this machine. Clusters with TLS are not checked.
    """
    current = _temporary_folder() / "ray" / "ray_current_cluster"  # `ray start` writes it, and a crash leaves it behind
    if address == "auto" and current.is_file():
        address = current.read_text(encoding="utf-8").strip()
    target = address.removeprefix("ray://")
    if ":" not in target or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError as error:
            raise ConfigError(
                f"RAY_ADDRESS: expected a Ray cluster at {address}, found no answer within {timeout_s:g} s; start the"
                " cluster, correct the address, or unset RAY_ADDRESS to use this machine alone"
            ) from error


def _temporary_folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def _join_cluster(address: str) -> None:
    try:
        ray.init(log_to_driver=True, runtime_env={"worker_process_setup_hook": _silence_coordinator_client})
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS: can't join the Ray cluster at {address}: {describe(error)}; check the address, and set"
            " RAY_AUTH_TOKEN if the cluster requires a token"
        ) from error


def _start_local_ray(num_cpus: int | None) -> None:
    # Hide Ray's messages about its start and its generated token, because users do not need them.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    try:
        with _blocking_sigterm():
            ray.init(
                address="local",
                logging_level=logging.WARNING,
                num_cpus=num_cpus,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                include_dashboard=False,
                runtime_env={"worker_process_setup_hook": _silence_local_ray},
                log_to_driver=True,
            )
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise ConfigError(
            f"Ray can't create its sockets below {_temporary_folder()}: their paths must not exceed 107 bytes; set"
            " RAY_TMPDIR to a short local folder, for example RAY_TMPDIR=/tmp"
        ) from error


@contextmanager
def _blocking_sigterm() -> Iterator[None]:
    """Block SIGTERM in the processes that are started within the context.

    Batch systems send SIGTERM to all processes of a job. Without this, Ray's processes would end immediately, before
    the driver, which handles the signal, has saved the training run. They still end together with the driver.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _silence_coordinator_client() -> None:
    """Silence Ray Train's autoscaler clients, which log a traceback when a busy machine answers late.

    A client waits for 5 s, logs the GetTimeoutError and retries, so these warnings never matter.
    """
    for client in ("autoscaling_coordinator_client", "elastic"):
        _drop_warnings(f"ray.train.v2._internal.execution.scaling_policy.{client}")


def _silence_local_ray() -> None:
    """Also silence Ray Train's cleaner, which complains if there is no dashboard or another Ray on this machine.

    Only a cluster that outlives its runs needs the cleaner. A local Ray cluster ends together with its run.
    """
    _silence_coordinator_client()
    _drop_warnings("ray.train.v2._internal.execution.controller.placement_group_cleaner")
    default_hook = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or args.thread.name != "PlacementGroupCleanerMonitor":
            default_hook(args)

    threading.excepthook = hook


def _drop_warnings(name: str) -> None:
    """Drop a logger's messages below ERROR with a filter, because Ray Train resets the logger's level."""
    logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)


def count_processors(use_gpu: bool) -> int:
    """Return how many tasks with one GPU, or with one CPU, the cluster can run concurrently."""
    return max(1, int(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 1)))


def spans_hosts() -> bool:
    """Return True if tasks may run on other hosts, now or after the cluster has grown. This is the case unless all
    nodes use loopback addresses."""
    return not all(node["NodeManagerAddress"].startswith(LOOPBACK) for node in ray.nodes() if node["Alive"])


def has_dashboard() -> bool:
    """Return True if the cluster runs Ray's dashboard."""
    return bool(get_dashboard_url())


def this_node() -> NodeAffinitySchedulingStrategy:
    """Return the scheduling strategy that keeps a task or an actor on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
