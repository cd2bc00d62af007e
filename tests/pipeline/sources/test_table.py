from pathlib import Path

import pytest

from pipeline.config import FetchConfig
from pipeline.errors import InputError
from pipeline.records import Failure, Media, Reason
from pipeline.sources.table import ListedSource
from tests.mirror import segment

FETCH = FetchConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,file\na,b\n", "expected the header id,path, found 'id,file'"),
        ("id,path\n", "one row per media file"),
        ("id,path\na,b,c\n", "line 2: expected an id and a path"),
        ("", "expected the header id,path, found ''"),
        ("id,path\na," + "b" * 200_000, "field larger than field limit"),
        ("x" * 100_000, "expected the header"),
        (b"id,path\na,\xff\n", "UnicodeDecodeError"),
    ],
)
def test_malformed_media_table_is_refused(text: str | bytes, message: str, tmp_path: Path) -> None:
    table = tmp_path / "media.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message) as caught:
        ListedSource(str(table), FETCH)
    assert len(str(caught.value)) < 1_000


def test_paths_in_a_media_table_are_relative_to_it(tmp_path: Path, tone: bytes) -> None:
    (tmp_path / "a.flac").write_bytes(tone)
    (tmp_path / "media.csv").write_text(f"id,path\nhere,a.flac\ngone,b.flac\nodd,a\0b\nlong,{'x' * 5_000}\n")
    source = ListedSource(str(tmp_path / "media.csv"), FETCH)
    media = source.fetch(segment("here"))
    assert isinstance(media, Media) and media.content == tmp_path / "a.flac"
    for ytid in ("gone", "odd", "long", "unlisted"):
        failure = source.fetch(segment(ytid))
        assert isinstance(failure, Failure) and failure.reason is Reason.NOT_FOUND
        assert len(failure.detail) < 500
