import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.audio.decode import Clip, decode_segment
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Media, Reason
from pipeline.sources import FolderSource, ParquetSource, Source, TarSource, open_source
from pipeline.sources.table import ListedSource
from pipeline.store.storage import Store
from tests.mirror import Mirror, segment

FETCH = FetchConfig()
NAMED = {
    "Y1234567890a": 5_000,
    "id_1234567890b": 5_000,
    "1234567890c_30": 30_000,
    "1234567890d_30000": 30_000,
    "1234567890e_0.500": 500,
}


def fetched(source: Source, ytid: str, start_ms: int) -> Media:
    media = source.fetch(segment(ytid, start_ms, start_ms + 10_000))
    assert isinstance(media, Media), media
    return media


def ytid_of(stem: str) -> str:
    return stem.removeprefix("Y").removeprefix("id_")[:11]


@pytest.fixture(params=["folder", "s3"])
def folder(request: pytest.FixtureRequest, tones: Path) -> str:
    if request.param == "folder":
        return str(tones)
    store: Store = request.getfixturevalue("s3_store")
    for file in tones.rglob("*.*"):
        store.write_bytes(f"media/{file.relative_to(tones)}", file.read_bytes())
    return store.url("media")


def test_a_folder_is_read_by_its_naming_schemes(folder: str, tone: bytes) -> None:
    source = pickle.loads(pickle.dumps(open_source(PreprocessConfig(media=folder))))
    assert isinstance(source, FolderSource)
    for stem, start_ms in NAMED.items():
        media = fetched(source, ytid_of(stem), start_ms)
        assert media.offset_ms == start_ms
        clip = decode_segment(media, start_ms, start_ms + 10_000)
        assert isinstance(clip, Clip)
        assert len(clip.waveform) == 160_000
    assert fetched(source, "-a_b_c_d_ef", 1_000).offset_ms == 0
    for ytid, start_ms in (("1234567890c", 0), ("1234567890f", 0), ("zzzzzzzzzzz", 0), ("+", 0)):
        failure = source.fetch(segment(ytid, start_ms))
        assert isinstance(failure, Failure)
        assert failure.reason is Reason.NOT_FOUND


def test_a_file_that_is_too_large_is_not_read(folder: str) -> None:
    source = FolderSource(folder, FetchConfig(max_media_bytes=100))
    failure = source.fetch(segment("-a_b_c_d_ef"))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TOO_LARGE


def write_tar(path: str, tone: bytes) -> None:
    with fsspec.open(path, "wb") as file, tarfile.open(fileobj=file, mode="w|") as tar:  # pyright: ignore
        for name in [*(f"{stem}.flac" for stem in NAMED), "/etc/-a_b_c_d_ef.flac", "../../up/upupupupup_.flac"]:
            info = tarfile.TarInfo(name)
            info.size = len(tone)
            tar.addfile(info, io.BytesIO(tone))
        link = tarfile.TarInfo("linklinklin.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)


@pytest.mark.parametrize("place", ["folder", "s3", "http"])
def test_tars_are_read_in_place_and_nothing_is_unpacked(
    place: str, tone: bytes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if place == "folder" else request.getfixturevalue("s3_store").root
    write_tar(f"{root}/audio-000.tar", tone)
    patterns = [f"{root}/*.tar", f"{root}/audio-{{000..000}}.tar"]
    if place == "http":
        boto3.client("s3").put_object_acl(Bucket="bucket", Key="store/audio-000.tar", ACL="public-read")
        patterns = [f"{request.getfixturevalue('s3_address')}/bucket/store/audio-{{000..000}}.tar"]
    for pattern in patterns:
        source = pickle.loads(pickle.dumps(open_source(PreprocessConfig(media=pattern))))
        assert isinstance(source, TarSource)
        for stem, start_ms in [*NAMED.items(), ("-a_b_c_d_ef", 7_000), ("upupupupup_", 0)]:
            media = fetched(source, ytid_of(stem), start_ms)
            assert (media.content, media.offset_ms) == (tone, start_ms)
        failure = source.fetch(segment("linklinklin"))
        assert isinstance(failure, Failure)
        assert failure.reason is Reason.NOT_FOUND


def test_a_tar_that_breaks_off_gives_what_it_has(tone: bytes, tmp_path: Path) -> None:
    whole, half = tmp_path / "whole.tar", tmp_path / "half.tar"
    write_tar(str(whole), tone)
    half.write_bytes(whole.read_bytes()[: 3 * (len(tone) + 1024)])
    source = TarSource(str(half), FETCH)
    assert fetched(source, "1234567890a", 0).content == tone
    assert isinstance(source.fetch(segment("-a_b_c_d_ef")), Failure)
    (tmp_path / "page.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(InputError, match=r"expected a tar at .*page.tar"):
        TarSource(str(tmp_path / "page.tar"), FETCH)
    with pytest.raises(InputError, match="found none"):
        TarSource(str(tmp_path / "no*.tar"), FETCH)


def test_a_server_that_sends_no_ranges_or_fails_is_named(
    mirror: Mirror, tone: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(f"{tmp_path}/whole.tar", tone)
    monkeypatch.setattr(mirror, "content", (tmp_path / "whole.tar").read_bytes())
    with pytest.raises(InputError, match=r"can't read the tar .*whole.tar: .* range"):
        TarSource(mirror.address + "/whole.tar", FETCH)
    with pytest.raises(InputError, match=r"can't read the tar .*status503.tar: .*503"):
        TarSource(mirror.address + "/status503.tar", FETCH)


def test_our_own_shards_are_a_source(small_store: Store) -> None:
    tars = small_store.url("shards/**/*.tar")
    source = open_source(PreprocessConfig(media=tars))
    assert isinstance(source, TarSource)
    assert len(source.index) > 10
    entry = source.index.table.slice(0, 1).to_pylist()[0]
    ytid, _, start = entry["stem"].rpartition("_")
    content = fetched(source, ytid, int(start)).content
    assert isinstance(content, bytes) and content[:4] == b"fLaC"


def test_hugging_faces_parquet_is_a_source(tone: bytes, tmp_path: Path) -> None:
    ids = ["-a_b_c_d_ef", "1234567890a", "1234567890b", "1234567890c", "emptyemptye"]
    audio = [{"bytes": tone if ytid != "emptyemptye" else b"", "path": f"{ytid}.flac"} for ytid in ids]
    labels = pa.array([["/m/1"]] * len(ids))
    table = pa.table({"video_id": ids, "audio": audio, "labels": labels, "human_labels": labels})
    pq.write_table(table, tmp_path / "00.parquet", row_group_size=1)
    source = pickle.loads(pickle.dumps(open_source(PreprocessConfig(media=str(tmp_path / "*.parquet")))))
    assert isinstance(source, ParquetSource)
    for ytid in (*ids[:4], *ids[:4]):
        media = fetched(source, ytid, 4_000)
        assert (media.content, media.offset_ms) == (tone, 4_000)
    assert len(source._groups) == 2
    for ytid, reason in (("emptyemptye", Reason.NO_AUDIO), ("zzzzzzzzzzz", Reason.NOT_FOUND)):
        failure = source.fetch(segment(ytid))
        assert isinstance(failure, Failure)
        assert failure.reason is reason
    pq.write_table(table.drop(["audio"]), tmp_path / "01.parquet")
    with pytest.raises(InputError, match=r"01.parquet: expected the columns audio"):
        ParquetSource(str(tmp_path / "*.parquet"), FETCH)


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
def test_columns_of_other_types_are_refused_at_the_start(column: str, values: Any, tmp_path: Path) -> None:
    table = pa.table({"ytid": ["1234567890a"], "audio": [b"abc"]} | {column: values})
    if len(column) > 5:
        table = table.drop(["audio"])
    pq.write_table(table, tmp_path / "00.parquet")
    with pytest.raises(InputError, match=r"00.parquet: expected the columns audio \(binary.* found '") as caught:
        ParquetSource(str(tmp_path / "00.parquet"), FETCH)
    assert len(str(caught.value)) < 1_000


def test_rows_without_an_id_are_left_out_and_text_never_becomes_a_path(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "00.parquet"
    pq.write_table(pa.table({"ytid": [None, "1234567890a", None], "audio": [b"x", b"abc", b"y"]}), file)
    source = ParquetSource(str(file), FETCH)
    assert "left out 2 rows without an id" in caplog.text
    assert fetched(source, "1234567890a", 0).content == b"abc"
    source = ParquetSource(str(file), FETCH)
    pq.write_table(pa.table({"ytid": ["", "1234567890a"], "audio": ["", SECRET]}), file)  # replaced since it was listed
    assert fetched(source, "1234567890a", 0).content == SECRET.encode()
    pq.write_table(pa.table({"ytid": ["", "1234567890a"], "audio": [1, 2]}), file)
    failure = ParquetSource.fetch(pickle.loads(pickle.dumps(source)), segment("1234567890a"))
    assert isinstance(failure, Failure) and failure.reason is Reason.CONNECTION
    pq.write_table(pa.table({"ytid": pa.array([], pa.string()), "audio": pa.array([], pa.binary())}), file)
    with pytest.raises(InputError, match="expected rows with an id and audio"):
        ParquetSource(str(file), FETCH)


def test_names_that_are_not_utf8_are_left_out(tmp_path: Path, tone: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder = os.fsencode(tmp_path / "media")
    Path(os.fsdecode(folder + b"/d\xff")).mkdir(parents=True)
    for name in (b"/1234567890a.flac", b"/\xff.flac", b"/d\xff/1234567890b.flac"):
        Path(os.fsdecode(folder + name)).write_bytes(tone)
    source = FolderSource(os.fsdecode(folder), FETCH)
    assert len(source.index) == 1
    assert "left out 2 media whose names are not UTF-8" in caplog.text
    with pytest.raises(InputError, match="expected a folder whose name is UTF-8"):
        FolderSource(os.fsdecode(folder + b"/d\xff"), FETCH)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(os.fsdecode(folder), arcname="")
    assert fetched(TarSource(str(tmp_path / "a.tar"), FETCH), "1234567890b", 0).content == tone  # folders don't count


@pytest.mark.parametrize("size", [-512, 2**70])
def test_a_tar_of_impossible_sizes_is_refused(size: int, tmp_path: Path) -> None:
    """After a member of -512 bytes comes its own header again."""
    header = bytearray(tarfile.TarInfo("1234567890a.flac").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (size % 256**12 | (size > 0) << 95).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar.*(impossible size|cannot fit|invalid offset)"):
        TarSource(str(tmp_path / "a.tar"), FETCH)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,file\na,b\n", "expected the header id,path, found 'id,file'"),
        ("id,path\n", "a row for each media file"),
        ("id,path\na,b,c\n", "line 2: expected an id and a path"),
        ("", "expected the header id,path, found ''"),
        ("id,path\na," + "b" * 200_000, "field larger than field limit"),
        ("x" * 100_000, "expected the header"),
        (b"id,path\na,\xff\n", "UnicodeDecodeError"),
    ],
)
def test_a_bad_table_of_media_is_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    table = tmp_path / "media.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        ListedSource(str(table), FETCH)
    assert len(str(caught.value)) < 1_000


def test_a_table_of_media_names_files_relative_to_itself(tmp_path: Path, tone: bytes) -> None:
    (tmp_path / "a.flac").write_bytes(tone)
    (tmp_path / "media.csv").write_text(f"id,path\nhere,a.flac\ngone,b.flac\nodd,a\0b\nlong,{'x' * 5_000}\n")
    source = ListedSource(str(tmp_path / "media.csv"), FETCH)
    assert fetched(source, "here", 0).content == tmp_path / "a.flac"
    for ytid in ("gone", "odd", "long", "unlisted"):
        failure = source.fetch(segment(ytid))
        assert isinstance(failure, Failure) and failure.reason is Reason.NOT_FOUND
        assert len(failure.detail) < 500
