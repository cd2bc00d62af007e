"""Several Ray nodes on one machine, a store on S3, and nodes that are taken away: `make rehearsal`."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
import torch
from ray import cloudpickle
from ray.cluster_utils import Cluster

from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.config import ASTConfig, AugmentConfig, CacheConfig, CheckpointConfig, TrainConfig
from ast_model.data.loader import Batch
from ast_model.distributed import World
from ast_model.training.job import StopSignal
from ast_model.training.step import Stepper
from ast_model.training.step_metrics import StepResult
from jobs.command_line.run_names import new_run_name
from jobs.command_line.settings import RayConfig
from jobs.training import ray_train
from jobs.training.ray_train import train_on_ray
from jobs.training.runs import TrackedJob, begin_run, ending_tracked, train_rank
from jobs.training.settings import TrainJobConfig
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.miniature import Miniature
from pipeline.preprocess import preprocess
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint
from pipeline.store.storage import Store
from tests.metadata_service import MetadataService, serve_metadata

pytestmark = [pytest.mark.rehearsal, pytest.mark.filterwarnings("ignore")]  # Ray's cluster utility is no clean code

Result = TypeVar("Result")
NODE_BYTES = 80 * 2**20
PAUSE_S = 0.05


@pytest.fixture
def cluster(s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without work and two nodes of one CPU each; all of them find the store by the environment."""
    assert os.environ.get("RAY_AUTH_MODE") == "token", "Ray reads it when it is imported: run `make rehearsal`"
    root = str(Path(__file__).parents[1])
    settings = {
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    ray.shutdown()  # of the Ray that tests before share
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": NODE_BYTES})
    for _ in range(2):
        cluster.add_node(wait=False, num_cpus=1, object_store_memory=NODE_BYTES)
    cluster.wait_for_nodes(timeout=120)
    ray.init(address=cluster.address, log_to_driver=True)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def service() -> Iterator[MetadataService]:
    with serve_metadata() as server:
        yield server


def losing_a_node(
    work: Callable[[], Result],
    is_time: Callable[[], bool],
    cluster: Cluster,
    is_missed: Callable[[], bool] = lambda: True,
) -> Result:
    """Do the work in a thread, take a node away from it without a word when it is time, and give another one once it
    is missed."""
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)

        def wait_until(condition: Callable[[], bool]) -> None:
            while not condition():
                assert not result.done(), result.result()
                time.sleep(0.1)

        wait_until(is_time)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        time.sleep(5)
        wait_until(is_missed)
        cluster.add_node(wait=False, num_cpus=1, object_store_memory=NODE_BYTES)  # in the main thread: it sets signals
        return result.result()


def take_your_time(loop_config: Mapping[str, Any]) -> None:
    """Train as a worker of Ray Train with a pause before each step, for which nodes can come and go."""
    train_step = Stepper.train_step

    def pause_and_train_step(self: Stepper, epoch: int, step: int, batches: Iterator[Batch]) -> StepResult:
        time.sleep(PAUSE_S)
        return train_step(self, epoch, step, batches)

    Stepper.train_step = pause_and_train_step
    ray_train._train_worker(loop_config)


def num_ranks(job: TrackedJob) -> list[int]:
    """Return on how many ranks a run was trained, one after the other."""
    metrics = job.tracker.client.get_metric_history(job.tracker.run_id, "system/num_ranks")
    values = [int(metric.value) for metric in sorted(metrics, key=lambda metric: metric.timestamp)]
    return [value for value, _ in groupby(values)]


def convert(store: Store, miniature: Miniature, media_address: str, cluster: Cluster) -> Snapshot:
    config = PreprocessConfig(
        metadata=str(miniature.metadata_folder),
        media=media_address,
        clips_per_shard=2,
        fetch=FetchConfig(deadline_s=1.0, backoff_s=0.01),
    )
    snapshot, report = losing_a_node(
        lambda: preprocess(config, store), lambda: len(store.list("shards", ".parquet")) >= 3, cluster
    )
    assert not report.errors
    return snapshot


def test_a_node_is_lost_in_the_conversion_and_one_in_the_training(
    cluster: Cluster,
    s3_store: Store,
    miniature: Miniature,
    media_address: str,
    snapshot: Snapshot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = convert(s3_store, miniature, media_address, cluster)
    check_fingerprint(found)
    assert found.index["key"] == snapshot.index["key"], "the clips are those of a conversion that nobody disturbed"
    split_counts = found.manifest["split_counts"]
    assert all(each["planned"] == each["written"] + sum(each["failed"].values()) for each in split_counts.values())

    train = TrainConfig(
        num_epochs=3,
        draws_per_epoch=800,
        global_batch_size=4,
        micro_batch_size=4,
        learning_rate=1e-3,
        augment=AugmentConfig(),
        log_every_steps=5,
        checkpoints=CheckpointConfig(every_steps=10, every_minutes=None),
        cache=CacheConfig(folder=str(tmp_path / "cache")),
    )
    model = ASTConfig(patch_time=32, freq_stride=16, time_stride=32, width=16, depth=2, num_heads=2)
    config = TrainJobConfig("rehearsal", model=model, train=train)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import this
    monkeypatch.setattr(ray_train, "GROW_EVERY_S", 2.0)
    monkeypatch.setattr(ray_train, "_train_worker", take_your_time)
    disturbed = begin_run(config, found, new_run_name("disturbed"))
    folder = f"runs/{disturbed.run}/checkpoints"
    with ending_tracked(disturbed):
        history = losing_a_node(
            lambda: train_on_ray(disturbed, RayConfig("1:2")),
            lambda: len(list_checkpoints(s3_store, folder)) > 0,
            cluster,
            lambda: num_ranks(disturbed)[-1:] == [1],
        )
    assert num_ranks(disturbed) == [2, 1, 2]
    quiet = begin_run(replace(config, preset="quiet"), found, new_run_name("quiet"))
    with ending_tracked(quiet):
        expected = train_rank(quiet, World(0, 1, torch.device("cpu")), StopSignal())
    assert [metrics["epoch"] for metrics in history] == [1, 2, 3]
    for one, other in zip(history, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-2, abs=5e-3)  # a d' may be about 0


def test_a_spot_notice_drains_the_node_it_came_to(cluster: Cluster, service: MetadataService) -> None:
    """The daemon of `deploy/spot_drain.py` against Ray itself: a drained node that has nothing to do ends."""
    service.notices[:] = [404, 200]
    node_id = cluster.worker_nodes.copy().pop().node_id
    command = [sys.executable, "-m", "deploy.spot_drain", "aws", "--service", service.address, "--poll-s", "0.1"]
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where `ray` is
    environment = {**os.environ, "PATH": path}
    further = ["--address", cluster.address, "--node-id", node_id]
    subprocess.run([*command, *further], cwd=root, env=environment, check=True, timeout=120)
    deadline = time.monotonic() + 60
    while is_alive := next(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id):
        assert time.monotonic() < deadline, "the node is still there"
        time.sleep(0.2)
    assert not is_alive
