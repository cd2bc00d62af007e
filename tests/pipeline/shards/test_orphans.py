import multiprocessing
import os
import time
from pathlib import Path

import boto3
import pytest

from pipeline.shards.orphans import remove_orphaned_files
from pipeline.store.scratch import ABANDONED_S, PREFIX, clear_scratch, make_scratch
from pipeline.store.storage import Store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.getfixturevalue("s3_store") if request.param == "s3" else Store(str(tmp_path / "store"))


def make_and_die(parent: Path) -> None:
    (make_scratch(parent) / "shard.tar").write_bytes(b"half")
    os._exit(9)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.process
def test_only_scratch_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=make_and_die, args=(tmp_path,))
    process.start()
    process.join()
    (dead,) = tmp_path.iterdir()
    mine, foreign = make_scratch(tmp_path), tmp_path / f"{PREFIX}-0123456789ab-1-1-abc"
    gone, strange = tmp_path / f"{PREFIX}-0123456789ab-1-2-abc", tmp_path / f"{PREFIX}-models"
    for folder in (foreign, gone, strange):
        folder.mkdir()
        (folder / "file").write_bytes(b"")
        age(folder, 2 * ABANDONED_S)
    age(mine, 2 * ABANDONED_S)
    age(gone / "file", 2 * ABANDONED_S)  # the other one is still written to
    assert clear_scratch(tmp_path) == 2
    assert set(tmp_path.iterdir()) == {mine, foreign, strange}
    assert not dead.exists()


@pytest.mark.slow
def test_unfinished_files_are_removed_after_a_day(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["quality/eval/a.parquet", "shards/eval/a.tar", "snapshots/b/index.parquet"]
    done = [
        "quality/eval/c.parquet",
        "shards/eval/c.parquet",
        "shards/eval/c.tar",
        "snapshots/d/index.parquet",
        "snapshots/d/manifest.json",
        "snapshots/d/selections/e.parquet",
    ]
    for name in (*names, *done):
        store.write_bytes(name, b"")
    remove_orphaned_files(store)
    assert store.list("") == sorted([*names, *done])
    monkeypatch.setattr("pipeline.shards.orphans.ABANDONED_S", -1.0)
    remove_orphaned_files(store)
    assert store.list("") == done


def test_interrupted_uploads_are_removed_after_a_day(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("s3")
    for key in ("store/shards/eval/a.tar", "elsewhere/b"):
        upload = client.create_multipart_upload(Bucket="bucket", Key=key)
        client.upload_part(Bucket="bucket", Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=b"half")
    monkeypatch.setattr("pipeline.store.storage.ABANDONED_S", 1e12)  # moto says of each that it was begun in 2010
    remove_orphaned_files(s3_store)
    assert len(client.list_multipart_uploads(Bucket="bucket")["Uploads"]) == 2
    monkeypatch.setattr("pipeline.store.storage.ABANDONED_S", ABANDONED_S)
    remove_orphaned_files(s3_store)
    (left,) = client.list_multipart_uploads(Bucket="bucket")["Uploads"]
    assert left["Key"] == "elsewhere/b"
