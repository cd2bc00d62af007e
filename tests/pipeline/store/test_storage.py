import pickle
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from pipeline.errors import CorruptError, LeaseError, StoreError
from pipeline.store.storage import Store


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return request.getfixturevalue("s3_store") if request.param == "s3" else Store(str(tmp_path / "new" / "store"))


def test_files_are_written_read_listed_and_removed(store: Store) -> None:
    store.write_bytes("shards/eval/-a_b.tar", b"0123456789")
    store.write_json("shards/eval/c.json", {"b": [1, 2], "a": "é"})
    assert store.read_bytes("shards/eval/-a_b.tar") == b"0123456789"
    assert store.read_range("shards/eval/-a_b.tar", 3, 4) == b"3456"
    assert store.read_json("shards/eval/c.json") == {"a": "é", "b": [1, 2]}
    assert store.size("shards/eval/-a_b.tar") == 10
    assert store.list("") == ["shards/eval/-a_b.tar", "shards/eval/c.json"]
    assert store.list("shards", ".json") == ["shards/eval/c.json"]
    assert store.list("nothing") == []
    store.remove("shards/eval/c.json")
    assert not store.exists("shards/eval/c.json")
    assert store.exists("shards/eval/-a_b.tar")


def test_pickled_store_reads_the_same_files(store: Store) -> None:
    store.write_bytes("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.read_bytes("a") == b"1"


def test_urls_are_absolute(s3_store: Store, tmp_path: Path) -> None:
    assert s3_store.url("a/b.tar") == "s3://bucket/store/a/b.tar"
    assert Store(str(tmp_path)).url("a/b.tar") == str(tmp_path / "a/b.tar")


def test_readers_never_see_incomplete_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    contents = [event * 2**22 for event in (b"a", b"b")]
    store.write_bytes("latest", contents[0])
    writes = threading.Thread(target=lambda: [store.write_bytes("latest", contents[n % 2]) for n in range(1, 20)])
    writes.start()
    num_reads = 0
    while writes.is_alive():
        assert store.read_bytes("latest") in contents
        num_reads += 1
    writes.join()
    assert num_reads > 5


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """Limit the size of files, so that writing beyond it fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes("latest.json", b"old")
    with full_disk(free_bytes=1000), pytest.raises(StoreError, match=r"can't write .*latest.json: OSError"):
        store.write_bytes("latest.json", b"new" * 1000)
    assert store.read_bytes("latest.json") == b"old"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["latest.json"]


def test_killed_write_leaves_no_file_with_the_final_name(store: Store, tmp_path: Path) -> None:
    with store.scratch() as folder:
        (folder / "shard.tar").write_bytes(b"half")
        assert store.list("") == []
    assert not folder.exists()
    with pytest.raises(StoreError, match=r"can't write .*eval/x.tar: FileNotFoundError"):
        store.publish(folder / "shard.tar", "shards/eval/x.tar")
    assert not store.exists("shards/eval/x.tar")


def test_publishing_moves_the_file(store: Store) -> None:
    with store.scratch() as folder:
        (folder / "shard.tar").write_bytes(b"whole")
        store.publish(folder / "shard.tar", "shards/eval/x.tar")
    assert store.read_bytes("shards/eval/x.tar") == b"whole"


def test_missing_file_is_named(store: Store) -> None:
    for read in (
        store.read_bytes,
        store.size,
        store.read_json,
        store.remove,
        lambda name: store.read_range(name, 0, 1),
    ):
        with pytest.raises(StoreError, match=r"can't .*store/shards/x.tar: FileNotFoundError"):
            read("shards/x.tar")


@pytest.mark.slow
def test_truncated_json_is_corrupt(store: Store) -> None:
    store.write_bytes("latest.json", b'{"snapshot": "ab')
    with pytest.raises(CorruptError, match=r"expected JSON in .*latest.json"):
        store.read_json("latest.json")


@pytest.mark.parametrize("root", ["{file}/store", "/proc/store", "nosuch://bucket/store", "s3://nosuchbucket/store"])
def test_read_only_root_is_named(root: str, s3_store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    root = root.format(file=tmp_path / "file")
    with pytest.raises(StoreError, match=f"can't (write|open) {root}"):
        Store(root).write_bytes("a", b"")


def test_missing_credentials_are_reported(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(StoreError, match=r"can't write s3://bucket/store/.*credentials"):
        Store(s3_store.root).write_bytes("a", b"")


@pytest.mark.slow
def test_other_s3_clients_read_the_same_bytes(s3_store: Store) -> None:
    s3_store.write_bytes("shards/x.tar", b"bytes")
    assert boto3.client("s3").get_object(Bucket="bucket", Key="store/shards/x.tar")["Body"].read() == b"bytes"


def test_checked_write_fails_if_its_check_fails(store: Store) -> None:
    def fail() -> None:
        raise LeaseError("lost")

    store.write_checked("latest.json", b"old", lambda: None)
    with pytest.raises(LeaseError, match="lost"):
        store.write_checked("latest.json", b"new", fail)
    assert store.read_bytes("latest.json") == b"old"


@pytest.mark.parametrize("before", [None, b"old"])
def test_checked_write_to_s3_keeps_a_concurrent_replacement(s3_store: Store, before: bytes | None) -> None:
    if before:
        s3_store.write_bytes("latest.json", before)
    with pytest.raises(LeaseError, match=r"latest.json was replaced by another run"):
        s3_store.write_checked("latest.json", b"mine", lambda: s3_store.write_bytes("latest.json", b"theirs"))
    assert s3_store.read_bytes("latest.json") == b"theirs"
    s3_store.write_checked("latest.json", b"mine", lambda: None)
    assert s3_store.read_bytes("latest.json") == b"mine"
