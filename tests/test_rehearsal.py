"""Lost nodes: several Ray nodes on one machine and a store on S3. Part of `make rehearsal`."""

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
from ast_model.training.job import Launcher
from ast_model.training.step import Stepper
from ast_model.training.step_metrics import StepResult
from jobs.command_line.run_names import new_run_name
from jobs.command_line.settings import RayConfig
from jobs.training import ray_train
from jobs.training.ray_train import train_on_ray
from jobs.training.runs import TrackedJob, begin_run, end_run_on_exit, train_rank
from jobs.training.settings import TrainJobConfig
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.miniature import Miniature
from pipeline.preprocess import preprocess
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint
from pipeline.store.storage import Store
from tests.metadata_service import MetadataService, serve_metadata

pytestmark = [pytest.mark.rehearsal, pytest.mark.filterwarnings("ignore")]  # Ray's cluster utility emits warnings

Result = TypeVar("Result")
NODE_BYTES = 80 * 2**20
PAUSE_S = 0.05


@pytest.fixture
def cluster(s3_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Ray cluster of a head without CPUs and two nodes with one CPU each, configured for the store on S3."""
    assert os.environ.get("RAY_AUTH_MODE") == "token", "Ray reads RAY_AUTH_MODE at import; run `make rehearsal`"
    root = str(Path(__file__).parents[1])
    settings = {
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    ray.shutdown()  # the Ray session of earlier tests
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


def lose_a_node_during(
    work: Callable[[], Result],
    is_time: Callable[[], bool],
    cluster: Cluster,
    is_missed: Callable[[], bool] = lambda: True,
) -> Result:
    """Run `work` in a thread, kill a node once `is_time`, and add a replacement once `is_missed`."""
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
        cluster.add_node(
            wait=False, num_cpus=1, object_store_memory=NODE_BYTES
        )  # in the main thread, since it sets signal handlers
        return result.result()


def train_slowly(loop_config: Mapping[str, Any]) -> None:
    """Run a Ray Train worker with a pause before each step, so that nodes can leave and join during the training."""
    train_step = Stepper.train_step

    def pause_and_train_step(self: Stepper, epoch: int, step: int, batches: Iterator[Batch]) -> StepResult:
        time.sleep(PAUSE_S)
        return train_step(self, epoch, step, batches)

    Stepper.train_step = pause_and_train_step
    ray_train._train_worker(loop_config)


def num_ranks(job: TrackedJob) -> list[int]:
    """Return the numbers of ranks that a run was trained on, in order of time."""
    metrics = job.tracker.client.get_metric_history(job.tracker.run_id, "system/num_ranks")
    values = [int(metric.value) for metric in sorted(metrics, key=lambda metric: metric.timestamp)]
    return [value for value, _ in groupby(values)]


def convert(store: Store, miniature: Miniature, media_address: str, cluster: Cluster) -> Snapshot:
    config = PreprocessConfig(
        metadata=str(miniature.metadata_folder),
        media=(media_address,),
        clips_per_shard=2,
        fetch=FetchConfig(deadline_s=1.0, backoff_s=0.01),
    )
    snapshot, report = lose_a_node_during(
        lambda: preprocess(config, store), lambda: len(store.list("shards", ".parquet")) >= 3, cluster
    )
    assert not report.errors
    return snapshot


def test_conversion_and_training_survive_lost_nodes(
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
    assert found.index["key"] == snapshot.index["key"], "expected the clips of an undisturbed conversion"
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
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    monkeypatch.setattr(ray_train, "GROW_EVERY_S", 2.0)
    monkeypatch.setattr(ray_train, "_train_worker", train_slowly)
    disturbed = begin_run(config, found, new_run_name("disturbed"))
    folder = f"runs/{disturbed.run}/checkpoints"
    with end_run_on_exit(disturbed):
        history = lose_a_node_during(
            lambda: train_on_ray(disturbed, RayConfig("1:2")),
            lambda: len(list_checkpoints(s3_store, folder)) > 0,
            cluster,
            lambda: num_ranks(disturbed)[-1:] == [1],
        )
    assert num_ranks(disturbed) == [2, 1, 2]
    quiet = begin_run(replace(config, preset="quiet"), found, new_run_name("quiet"))
    with end_run_on_exit(quiet):
        expected = train_rank(quiet, World(0, 1, torch.device("cpu")), Launcher())
    assert [metrics["epoch"] for metrics in history] == [1, 2, 3]
    for one, other in zip(history, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-2, abs=5e-3)  # d' may be close to 0


def test_spot_notice_drains_its_node(cluster: Cluster, service: MetadataService) -> None:
    """Ray removes an idle node that `deploy/spot_drain.py` drained."""
    service.notices[:] = [404, 200]
    node_id = cluster.worker_nodes.copy().pop().node_id
    command = [sys.executable, "-m", "deploy.spot_drain", "aws", "--service", service.address, "--poll-s", "0.1"]
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the folder of `ray`
    environment = {**os.environ, "PATH": path}
    further = ["--address", cluster.address, "--node-id", node_id]
    subprocess.run([*command, *further], cwd=root, env=environment, check=True, timeout=120)
    deadline = time.monotonic() + 60
    while is_alive := next(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id):
        assert time.monotonic() < deadline, "expected the drained node to leave the cluster"
        time.sleep(0.2)
    assert not is_alive
