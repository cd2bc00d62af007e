"""Ray sessions: join a running cluster or start a local one."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOCAL_OBJECT_STORE_BYTES = 200 * 2**20
"""Enough for plans, paths and reports. Audio never enters the object store."""


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Join the cluster in `RAY_ADDRESS`, which Ray Jobs sets, or start a local one and stop it at the end."""
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=True, runtime_env={"worker_process_setup_hook": _silence_coordinator_client})
    else:
        # Ray logs its start and its generated token; users can do nothing with either.
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        ray.init(
            address="local",
            logging_level=logging.WARNING,
            num_cpus=num_cpus,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            include_dashboard=False,
            runtime_env={"worker_process_setup_hook": _silence_local_ray},
            log_to_driver=True,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _silence_coordinator_client() -> None:
    """Silence Ray Train's autoscaling client, which warns with a traceback whenever a busy machine answers late.

    The client waits 5 s, logs the GetTimeoutError and retries, so the warning never matters.
    """
    client = "ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client"
    logging.getLogger(client).setLevel(logging.ERROR)


def _silence_local_ray() -> None:
    """Also silence Ray Train's cleaner, which reports a missing dashboard or another Ray on this machine.

    The cleaner serves clusters that outlive a run. A local Ray ends with its run.
    """
    _silence_coordinator_client()
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
    default_hook = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or args.thread.name != "PlacementGroupCleanerMonitor":
            default_hook(args)

    threading.excepthook = hook


def count_processors(use_gpu: bool) -> int:
    """Return how many tasks with one GPU, or one CPU, the cluster runs concurrently."""
    return max(1, int(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 1)))


def this_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that keeps a task or actor on the driver's node."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
