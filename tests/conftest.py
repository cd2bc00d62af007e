"""A small store made of a small miniature, an S3 service and a Ray, each made once.

What takes a second to import is imported where it is used, since each process that runs tests reads this file.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from threadpoolctl import threadpool_limits

from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.convert import Conversion, convert_shard
from pipeline.labels import Labels
from pipeline.metadata import Metadata, load_metadata
from pipeline.miniature import Miniature, make_miniature, serve_miniature
from pipeline.records import ShardPlan, ShardReport
from pipeline.shards.ledger import plan_shards, read_sidecar_table
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.snapshot import Snapshot
from pipeline.sources import HttpSource
from pipeline.store.storage import Store

CLIPS_PER_SHARD = 7


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that shares the one Ray, so that `make check` goes without it."""
    for item in items:
        if "ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """More would wait for each other on few cores, and NumPy's even more so."""
    import torch

    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("small") / "miniature", num_train=24, num_eval=8)


@pytest.fixture(scope="session")
def media_address(miniature: Miniature) -> Iterator[str]:
    """The miniature's media on loopback, with their faults."""
    with serve_miniature(miniature.folder) as server:
        yield server.media_address


@pytest.fixture(scope="session")
def metadata(miniature: Miniature) -> Metadata:
    return load_metadata(PreprocessConfig(metadata=str(miniature.metadata_folder)))


@pytest.fixture(scope="session")
def labels(metadata: Metadata) -> Labels:
    return metadata.labels


@pytest.fixture(scope="session")
def conversion(media_address: str, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """Conversion that makes the small store's shards."""
    # One clip of the miniature stalls: each attempt at it waits for the whole deadline.
    fetch = FetchConfig(deadline_s=0.5, backoff_s=0.01, num_threads=4)
    store = Store(str(tmp_path_factory.mktemp("small") / "store"))
    return Conversion(store, HttpSource(media_address, fetch), fetch, keep_audio=True)


@pytest.fixture(scope="session")
def plans(metadata: Metadata, conversion: Conversion) -> list[ShardPlan]:
    """All shards of the small store, as they were planned before there were any."""
    sidecar_table = read_sidecar_table(Store(f"{conversion.store.root}/empty"), conversion.fingerprint)
    return list(plan_shards(metadata.segments, sidecar_table, CLIPS_PER_SHARD))


@pytest.fixture(scope="session")
def reports(plans: list[ShardPlan], conversion: Conversion) -> list[ShardReport]:
    """Of making the small store's shards, in the order of the plans."""
    reports = [convert_shard(plan, conversion) for plan in plans]
    return [report for report in reports if isinstance(report, ShardReport)]


@pytest.fixture(scope="session")
def snapshot(reports: list[ShardReport], conversion: Conversion, metadata: Metadata) -> Snapshot:
    """The small store's snapshot."""
    assert reports
    return build_snapshot(conversion.store, metadata, conversion.keep_audio)


@pytest.fixture(scope="session")
def small_store(snapshot: Snapshot) -> Store:
    """Shards and a snapshot of the small miniature. Tests may add to it, not change it."""
    return snapshot.store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database with its tables, whose making takes seconds."""
    import mlflow

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """An S3 service on loopback, by its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def enter_s3(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture
def s3_store(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store on S3, found and entered by AWS's usual environment variables."""
    import boto3
    from s3fs import S3FileSystem

    enter_s3(s3_address, monkeypatch)
    requests.post(f"{s3_address}/moto-api/reset", timeout=10).raise_for_status()
    boto3.client("s3").create_bucket(Bucket="bucket")
    S3FileSystem.clear_instance_cache()  # its clients keep the settings that they were made with
    yield Store("s3://bucket/store")
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session", name="ray")
def start_ray(s3_address: str) -> Iterator[None]:
    """A Ray of two CPUs in this process's hands, whose workers can enter S3."""
    import ray

    with pytest.MonkeyPatch.context() as monkeypatch:
        enter_s3(s3_address, monkeypatch)
        ray.init(
            address="local", num_cpus=2, object_store_memory=150 * 2**20, include_dashboard=False, log_to_driver=False
        )
    yield
    ray.shutdown()
