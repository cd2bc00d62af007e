import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.config import conf

from pipeline.copies.containers import Container, list_copy
from pipeline.copies.members import Member, read_members
from pipeline.errors import InputError
from pipeline.records import Failure, Reason
from pipeline.sources.names import readings_of
from pipeline.store.storage import Store
from tests.hub import run_hub
from tests.pipeline.copies.layouts import LAYOUTS, Clips, id_in_json, nested_parquet, plain_tar, write_tar, zipped

CLIPS = {f"-{number:02d}_aB-cD_{number % 10}"[:11]: bytes([number]) * (1000 + number) for number in range(20)}


def read(container: Container, scratch: Path, max_media_bytes: int = 10_000) -> list[Member]:
    return list(read_members(container, scratch, max_media_bytes))


def contents_by_id(members: list[Member]) -> dict[str, object]:
    return {ytid: member.content for member in members for ytid, _, _ in readings_of(member.stem) if ytid in CLIPS}


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("place", ["folder", "hub"])
def test_published_layout_yields_every_clip_under_its_id(
    tmp_path: Path, write: Callable[[Path, Clips], None], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    write(folder, CLIPS)
    with run_hub(folder) as hub:
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.address})
        copy = list_copy(str(folder) if place == "folder" else "hf://datasets/owner/copy")
        members = [member for container in copy.containers for member in read(container, tmp_path)]
    assert contents_by_id(members) == CLIPS
    if place == "hub":
        stored = sum(container.num_bytes for container in copy.containers)
        assert hub.requests["resolve"] == len(copy.containers)
        assert hub.num_bytes == stored


def test_rate_limited_hub_is_asked_again_after_the_stated_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_tar(tmp_path / "copy", CLIPS)
    with run_hub(tmp_path / "copy") as hub:
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.address})
        (container,) = list_copy("hf://datasets/owner/copy").containers
        hub.refusals["data/bal_train00.tar"] = (429, {"Retry-After": "0"})
        assert contents_by_id(read(container, tmp_path)) == CLIPS


def test_folder_with_containers_loose_files_and_unfinished_downloads_is_described(tmp_path: Path) -> None:
    nested_parquet(tmp_path, CLIPS)
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose/abcdefghijk.flac").write_bytes(b"media")
    (tmp_path / "data/02.parquet.incomplete").write_bytes(b"half")
    copy = list_copy(str(tmp_path))
    assert copy.describe() == "2 parquet (0.0 GB), 1 loose files, 1 unfinished downloads"


def test_damaged_and_oversized_zip_members_fail_alone(tmp_path: Path) -> None:
    zipped(tmp_path, CLIPS)
    file = tmp_path / "eval/eval_segments.zip"
    content, damaged = bytearray(file.read_bytes()), list(CLIPS.values())[3]
    content[content.index(damaged)] ^= 1
    file.write_bytes(content)
    (container,) = list_copy(str(tmp_path)).containers
    found = contents_by_id(read(container, tmp_path, max_media_bytes=1018))
    reasons = [content.reason for content in found.values() if isinstance(content, Failure)]
    assert reasons == [Reason.NOT_MEDIA, Reason.TOO_LARGE]


def test_zip_bomb_is_not_inflated(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("abcdefghijk.wav", bytes(10**8))
    (tmp_path / "bomb.zip").write_bytes(buffer.getvalue())
    (member,) = read(list_copy(str(tmp_path)).containers[0], tmp_path)
    assert isinstance(member.content, Failure) and member.content.reason is Reason.TOO_LARGE


def test_names_that_climb_out_of_the_archive_are_only_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "copy/x.tar", {"../../abcdefghijk.flac": b"media"})
    (member,) = read(list_copy(str(tmp_path / "copy")).containers[0], tmp_path)
    assert member == Member("../../abcdefghijk.flac", "abcdefghijk", b"media")
    assert [file.name for file in tmp_path.rglob("*.flac")] == []


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip", "x.parquet"])
def test_file_of_another_format_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>" * 200)
    with pytest.raises(InputError, match=f"at .*{name}, found"):
        read(list_copy(str(tmp_path)).containers[0], tmp_path)


def test_parquet_without_audio_lists_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"video_id": ["abcdefghijk"], "audio": ["/home/x.wav"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="audio: string"):
        read(list_copy(str(tmp_path)).containers[0], tmp_path)


def test_sample_without_an_id_keeps_its_own_name(tmp_path: Path) -> None:
    id_in_json(tmp_path, CLIPS)
    write_tar(tmp_path / "20k/train/shard-00000.tar", {"sample-000000000.wav": b"media", "sample-000000000.json": b"["})
    (member,) = read(list_copy(str(tmp_path)).containers[0], tmp_path)
    assert member.stem == "sample-000000000"


SECRET = "/etc/hostname"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("audio", [SECRET]),
        ("audio", [f"file://{SECRET}"]),
        ("audio", [7]),
        ("audio", [[1, 2]]),
        ("audio", [{"path": SECRET}]),
        ("audio", [{"bytes": SECRET, "path": SECRET}]),
        ("audio", pa.array([None], pa.null())),
        ("ytid", [7]),
        ("ytid", [["1234567890a"]]),
        ("ytid", pa.array([None], pa.null())),
        ("audio" * 100_000, [b""]),
    ],
)
def test_columns_of_other_types_are_refused(column: str, values: Any, tmp_path: Path) -> None:
    table = pa.table({"ytid": ["1234567890a"], "audio": [b"abc"]} | {column: values})
    if len(column) > 5:
        table = table.drop(["audio"])
    pq.write_table(table, tmp_path / "00.parquet")
    with pytest.raises(InputError, match=r"00.parquet: expected audio \(binary.* found '") as caught:
        read(list_copy(str(tmp_path)).containers[0], tmp_path)
    assert len(str(caught.value)) < 1_000


def test_rows_without_an_id_are_skipped(tmp_path: Path) -> None:
    table = pa.table({"ytid": [None, "1234567890a", None], "audio": [b"x", b"abc", b"y"]})
    pq.write_table(table, tmp_path / "00.parquet")
    assert read(list_copy(str(tmp_path)).containers[0], tmp_path) == [Member("1234567890a", "1234567890a", b"abc")]


@pytest.mark.parametrize("place", ["s3", "http"])
def test_tar_on_s3_and_over_http_is_streamed(place: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plain_tar(tmp_path, CLIPS)
    store: Store = request.getfixturevalue("s3_store")
    store.write_bytes("00.tar", (tmp_path / "data/bal_train00.tar").read_bytes())
    media = store.url("*.tar")
    if place == "http":
        boto3.client("s3").put_object_acl(Bucket="bucket", Key="store/00.tar", ACL="public-read")
        media = f"{request.getfixturevalue('s3_address')}/bucket/store/{{00..00}}.tar"
    (container,) = list_copy(media).containers
    assert contents_by_id(read(container, tmp_path)) == CLIPS


def test_links_in_tars_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("linklinklin.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert read(list_copy(str(tmp_path)).containers[0], tmp_path) == []


@pytest.mark.parametrize("size", [-512, 2**70])
def test_tar_with_impossible_sizes_is_refused(size: int, tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("1234567890a.flac").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % 256**12 | (size > 0) << 95).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar, found"):
        read(list_copy(str(tmp_path)).containers[0], tmp_path)


def test_gzip_named_tar_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("abcdefghijk.flac"), io.BytesIO())
    assert [member.stem for member in read(list_copy(str(tmp_path)).containers[0], tmp_path)] == ["abcdefghijk"]


def test_concatenated_tars_are_reported_after_the_first(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("abcdefghijk.flac"), io.BytesIO())
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() * 2)
    members = read_members(list_copy(str(tmp_path)).containers[0], tmp_path, 2**20)
    assert next(members).stem == "abcdefghijk"
    with pytest.raises(InputError, match=r"a\.tar, found: .* consists of several tars"):
        next(members)


@pytest.mark.process
def test_sparse_member_is_read_with_its_holes(tmp_path: Path) -> None:
    content = b"a" * 4096 + bytes(200_000) + b"b" * 4096
    (tmp_path / "plain").write_bytes(content)
    subprocess.run(["cp", "--sparse=always", "plain", "abcdefghijk.flac"], cwd=tmp_path, check=True)
    subprocess.run(["tar", "--sparse", "-cf", "a.tar", "abcdefghijk.flac", "plain"], cwd=tmp_path, check=True)
    container = list_copy(str(tmp_path / "a.tar")).containers[0]
    assert [member.content for member in read(container, tmp_path, 2**20)] == [content]


def test_linked_files_and_folders_of_a_copy_are_listed(tmp_path: Path) -> None:
    for name in ("blobs/1", "disk2/b.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"content")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/a.parquet").symlink_to(tmp_path / "blobs/1")
    (tmp_path / "copy/more").symlink_to(tmp_path / "disk2")
    for media in (tmp_path / "copy", f"{tmp_path}/copy/**/*.*"):
        copy = list_copy(str(media))
        assert [(each.kind, each.num_bytes) for each in copy.containers if each.kind == "parquet"] == [("parquet", 7)]
    assert len(list_copy(str(tmp_path / "copy")).containers) == 2


def test_pipe_named_tar_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(InputError, match=r"expected a regular file at .*a\.tar"):
        list_copy(str(tmp_path / "a.tar"))
