"""Real yt-dlp, its generic extractor, against a server on loopback."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.audio.decode import Clip, decode_segment
from pipeline.config import FetchConfig, YouTubeConfig
from pipeline.errors import ConfigError
from pipeline.records import Failure, Media, Reason
from pipeline.sources import fetch_within
from pipeline.sources.youtube import YouTubeSource
from tests.mirror import Mirror, segment

FETCH = FetchConfig(deadline_s=20, max_media_bytes=2**20)


def open_source(mirror: Mirror, config: YouTubeConfig | None = None, fetch: FetchConfig = FETCH) -> YouTubeSource:
    return YouTubeSource(
        config or YouTubeConfig(), fetch, address=mirror.address + "/{ytid}.flac", extractors=("generic",)
    )


@pytest.fixture(scope="module")
def source(mirror: Mirror) -> Iterator[YouTubeSource]:
    source = open_source(mirror)
    yield source
    source.close()


def test_the_whole_file_comes_with_the_version_that_fetched_it(source: YouTubeSource, mirror: Mirror) -> None:
    media = source.fetch(segment("whole", 2_000, 12_000))
    assert isinstance(media, Media)
    assert media.content == mirror.content
    assert media.source.startswith(f"{mirror.address}/whole.flac (format flac, yt-dlp 20")
    clip = decode_segment(media, 2_000, 12_000)
    assert isinstance(clip, Clip)
    assert len(clip.waveform) == 160_000


@pytest.mark.parametrize(
    ("ytid", "reason"),
    [
        ("status403", Reason.FORBIDDEN),
        ("status404", Reason.NOT_FOUND),
        ("status429", Reason.RATE_LIMITED),
        ("status451", Reason.COUNTRY_BLOCKED),
        ("status503", Reason.SERVER_ERROR),
        ("page", Reason.NOT_MEDIA),
        ("short", Reason.TRUNCATED),
        ("endless", Reason.TOO_LARGE),
    ],
)
def test_each_failure_has_its_name_and_message(source: YouTubeSource, ytid: str, reason: Reason) -> None:
    failure = source.fetch(segment(ytid))
    assert isinstance(failure, Failure)
    assert failure.reason is reason, failure.detail
    assert failure.detail


def test_the_deadline_holds_against_a_silent_server_and_leaves_no_process(mirror: Mirror) -> None:
    source = open_source(mirror, fetch=replace(FETCH, deadline_s=2))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    started = time.monotonic()
    failure = source.fetch(segment("mute"))
    assert time.monotonic() - started < 3
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TIMED_OUT
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_processes_are_replaced_and_end_with_their_parent(mirror: Mirror) -> None:
    source = open_source(mirror, YouTubeConfig(videos_per_process=1))
    source.fetch(segment("status404"))
    assert source._idle.empty()
    keeper = open_source(mirror)
    keeper.fetch(segment("status404"))
    child = keeper._idle.get()
    process = psutil.Process(child._process.pid)
    assert child._process.stdin
    child._process.stdin.close()  # as when the parent is killed
    process.wait(5)
    assert not child._home.exists()
    child.end()


def test_each_process_has_its_own_copy_of_the_cookies(mirror: Mirror, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tname\tvalue\n")
    content = cookies.read_bytes()
    source = open_source(mirror, YouTubeConfig(cookies=str(cookies)))
    assert isinstance(source.fetch(segment("whole")), Media)
    child = source._idle.get()
    assert "name\tvalue" in child.cookies.read_text()
    assert child.cookies.stat().st_mode & 0o077 == 0
    assert cookies.read_bytes() == content
    assert "value" not in repr(source.config)
    child.end()
    assert not child.cookies.exists()


def test_a_file_of_secrets_that_is_missing_is_named(mirror: Mirror) -> None:
    with pytest.raises(ConfigError, match=r"can't read /nowhere/cookies.txt"):
        open_source(mirror, YouTubeConfig(cookies="/nowhere/cookies.txt"))


def test_an_attempt_that_never_returns_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        def fetch(self, segment, proxy=None):
            time.sleep(2)
            os.write(2, b"")

    monkeypatch.setattr("pipeline.sources.source.GRACE_S", 0.1)
    started = time.monotonic()
    failure = fetch_within(Hanging(), segment("any"), None, deadline_s=0.2)  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - started < 1
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TIMED_OUT
