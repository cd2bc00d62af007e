from collections.abc import Iterator

import boto3
import pytest
import requests
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from pipeline.storage import Store


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """An S3 service on loopback, by its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_store(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store on S3, found and entered by AWS's usual environment variables."""
    settings = {
        "AWS_ENDPOINT_URL": s3_address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    requests.post(f"{s3_address}/moto-api/reset", timeout=10).raise_for_status()
    boto3.client("s3").create_bucket(Bucket="bucket")
    S3FileSystem.clear_instance_cache()  # its clients keep the settings that they were made with
    return Store("s3://bucket/store")
