import os
import pickle
from pathlib import Path

import pytest

from pipeline.audio.decode import Clip, decode_segment
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Media, Reason
from pipeline.sources import FolderSource, Source, open_source
from pipeline.store.storage import Store
from tests.mirror import segment

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


def test_folder_finds_media_in_every_naming_scheme(folder: str, tone: bytes) -> None:
    source = pickle.loads(pickle.dumps(open_source(folder, PreprocessConfig())))
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
        assert failure.reason is Reason.MISSING_IN_SOURCE


def test_too_large_file_is_not_read(folder: str) -> None:
    source = FolderSource(folder, FetchConfig(max_media_bytes=100))
    failure = source.fetch(segment("-a_b_c_d_ef"))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TOO_LARGE


def test_names_that_are_not_utf8_are_skipped(tmp_path: Path, tone: bytes, caplog: pytest.LogCaptureFixture) -> None:
    folder = os.fsencode(tmp_path / "media")
    Path(os.fsdecode(folder + b"/d\xff")).mkdir(parents=True)
    for name in (b"/1234567890a.flac", b"/\xff.flac", b"/d\xff/1234567890b.flac"):
        Path(os.fsdecode(folder + name)).write_bytes(tone)
    source = FolderSource(os.fsdecode(folder), FETCH)
    assert source.index.table["file"].unique().to_pylist() == ["1234567890a.flac"]
    assert "skipped 2 media files whose names are not UTF-8" in caplog.text
    with pytest.raises(InputError, match="expected a folder whose name is UTF-8"):
        FolderSource(os.fsdecode(folder + b"/d\xff"), FETCH)


def test_id_pattern_replaces_the_known_schemes(tmp_path: Path, tone: bytes) -> None:
    (tmp_path / "clip-1234567890a.take2.flac").write_bytes(tone)
    source = FolderSource(str(tmp_path), FETCH, id_pattern=r"clip-(?P<id>[\w-]{11})")
    assert isinstance(source.fetch(segment("1234567890a")), Media)
