"""The demo's media, on one host and on several."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jobs.preprocessing import miniature_media
from jobs.preprocessing.miniature_media import with_miniature_media
from pipeline.config import PreprocessConfig
from pipeline.miniature import Miniature
from pipeline.records import Media
from pipeline.sources import open_source
from pipeline.store.storage import Store

DEMO = PreprocessConfig(metadata="miniature")


@pytest.fixture(autouse=True)
def cluster(miniature: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to join a cluster that spans hosts, and use the tests' small miniature."""

    @contextmanager
    def joined() -> Iterator[None]:
        yield

    monkeypatch.setenv("RAY_ADDRESS", "10.77.0.2:6379")
    monkeypatch.setattr(miniature_media, "ray_session", joined)
    monkeypatch.setattr(miniature_media, "spans_hosts", lambda: True)
    monkeypatch.setattr(miniature_media, "make_miniature", lambda folder, on_progress: miniature)


def test_workers_on_other_hosts_read_the_media_from_the_store(miniature: Miniature, s3_store: Store) -> None:
    with with_miniature_media(DEMO, s3_store) as data:
        assert data.media == (s3_store.url("miniature/media"),)
        source = open_source(data.media[0], data)
        clip = next(clip for clip in miniature.clips if clip.fault is None)
        media = source.fetch(clip.segment)
        assert isinstance(media, Media)
    names = {name.rpartition("/")[2] for name in s3_store.list("miniature/media")}
    assert names == {file.name for file in miniature.media_folder.iterdir()}


def test_media_are_served_on_loopback_if_all_nodes_are(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miniature_media, "spans_hosts", lambda: False)
    with with_miniature_media(DEMO, s3_store) as data:
        assert data.media[0].startswith("http://127.0.0.1:")
    assert s3_store.list("miniature") == []
