"""Session fixtures: a small store built from a small miniature, an S3 service, and a Ray.

Slow imports are inside the fixtures, because every test process imports this file.
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
    """Mark every test that uses the shared Ray, so that `make check` skips it."""
    for item in items:
        if "ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread per library: with tests in parallel, more threads would compete for the cores."""
    import torch

    torch.set_num_threads(1)
    threadpool_limits(1, user_api="blas")


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Miniature:
    return make_miniature(tmp_path_factory.mktemp("small") / "miniature", num_train=24, num_eval=8)


@pytest.fixture(scope="session")
def media_address(miniature: Miniature) -> Iterator[str]:
    """Address of a loopback server with the miniature's media, including the planned faults."""
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
    """The conversion into the small store's shards."""
    # One clip of the miniature stalls, so each attempt to fetch it takes the whole deadline.
    fetch = FetchConfig(deadline_s=0.5, backoff_s=0.01, num_threads=4)
    store = Store(str(tmp_path_factory.mktemp("small") / "store"))
    return Conversion(store, HttpSource(media_address, fetch), fetch, keep_audio=True)


@pytest.fixture(scope="session")
def plans(metadata: Metadata, conversion: Conversion) -> list[ShardPlan]:
    """Plans of all shards of the small store, made while it was empty."""
    sidecar_table = read_sidecar_table(Store(f"{conversion.store.root}/empty"), conversion.fingerprint)
    return list(plan_shards(metadata.segments, sidecar_table, CLIPS_PER_SHARD))


@pytest.fixture(scope="session")
def reports(plans: list[ShardPlan], conversion: Conversion) -> list[ShardReport]:
    """Reports of the small store's shards, in the order of the plans."""
    reports = [convert_shard(plan, conversion) for plan in plans]
    return [report for report in reports if isinstance(report, ShardReport)]


@pytest.fixture(scope="session")
def snapshot(reports: list[ShardReport], conversion: Conversion, metadata: Metadata) -> Snapshot:
    """The small store's snapshot."""
    assert reports
    return build_snapshot(conversion.store, metadata, conversion.keep_audio)


@pytest.fixture(scope="session")
def small_store(snapshot: Snapshot) -> Store:
    """A store with the small miniature's shards and snapshot. Tests may add files but must not change any."""
    return snapshot.store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking database; tests copy it, because creating its tables takes seconds."""
    import mlflow

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """Address of an S3 service on loopback."""
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
    """An empty store on S3, configured by AWS's environment variables."""
    import boto3
    from s3fs import S3FileSystem

    enter_s3(s3_address, monkeypatch)
    requests.post(f"{s3_address}/moto-api/reset", timeout=10).raise_for_status()
    boto3.client("s3").create_bucket(Bucket="bucket")
    S3FileSystem.clear_instance_cache()  # cached clients keep the settings of earlier tests
    yield Store("s3://bucket/store")
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session", name="ray")
def start_ray(s3_address: str) -> Iterator[None]:
    """A local Ray with two CPUs, whose workers have the credentials of the S3 service."""
    import ray

    with pytest.MonkeyPatch.context() as monkeypatch:
        enter_s3(s3_address, monkeypatch)
        monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
        ray.init(
            address="local", num_cpus=2, object_store_memory=150 * 2**20, include_dashboard=False, log_to_driver=False
        )
    yield
    ray.shutdown()
