"""The real yt-dlp with its generic extractor, against a server on loopback."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from yt_dlp import YoutubeDL

from pipeline.audio.decode import Clip, decode_segment
from pipeline.config import FetchConfig, YouTubeConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.records import Failure, FailureCategory, Media, Reason
from pipeline.sources.fetch import fetch_within
from pipeline.sources.youtube import YouTubeSource
from pipeline.sources.youtube_worker import yt_dlp_options
from tests.mirror import SILENCE_S, Mirror, segment

pytestmark = pytest.mark.process  # starts yt-dlp processes

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


def test_media_state_the_yt_dlp_version(source: YouTubeSource, mirror: Mirror) -> None:
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
        ("status403", Reason.BLOCKED),
        ("status404", Reason.SERVER_ERROR),
        ("status429", Reason.RATE_LIMITED),
        ("status451", Reason.COUNTRY_BLOCKED),
        ("status503", Reason.SERVER_ERROR),
        ("page", Reason.NOT_MEDIA),
        ("short", Reason.TRUNCATED),
        ("endless", Reason.TOO_LARGE),
    ],
)
def test_failures_are_classified_with_their_message(source: YouTubeSource, ytid: str, reason: Reason) -> None:
    failure = source.fetch(segment(ytid))
    assert isinstance(failure, Failure)
    assert failure.reason is reason, failure.detail
    assert failure.detail


def test_deadline_kills_the_process_that_waits_for_a_silent_server(mirror: Mirror) -> None:
    source = open_source(mirror, fetch=replace(FETCH, deadline_s=2))
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with mirror.silence():
        failure = source.fetch(segment("mute"))
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TIMED_OUT
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_processes_are_replaced_and_end_with_their_parent(mirror: Mirror) -> None:
    source = open_source(mirror, YouTubeConfig(videos_per_process=1))
    source.fetch(segment("status404"))
    assert not source._idle
    keeper = open_source(mirror)
    keeper.fetch(segment("status404"))
    (process,) = keeper._idle
    assert process._process.stdin
    process._process.stdin.close()  # as when the parent is killed
    process._process.wait(5)
    assert not process._home.exists()
    keeper.close()


def test_idle_process_ends_and_is_replaced(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(mirror)
    source.fetch(segment("status503"))
    (kept,) = source._idle
    source.fetch(segment("status503"))
    assert source._idle == [kept]
    monkeypatch.setattr("pipeline.sources.youtube.IDLE_S", 0.01)
    source.fetch(segment("status503"))
    psutil.Process(kept._process.pid).wait(5)
    assert isinstance(source.fetch(segment("whole")), Media)
    source.close()


def test_browser_is_impersonated(mirror: Mirror) -> None:
    pytest.importorskip("curl_cffi")
    source = open_source(mirror, YouTubeConfig(impersonate="safari-18.0"))
    mirror.user_agents.clear()
    media = source.fetch(segment("whole", 2_000, 12_000))
    source.close()
    assert isinstance(media, Media)
    assert media.content == mirror.content
    assert mirror.user_agents and all("Version/18.0" in agent for agent in mirror.user_agents), mirror.user_agents


def test_each_process_copies_the_cookies(mirror: Mirror, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tname\tvalue\n")
    content = cookies.read_bytes()
    source = open_source(mirror, YouTubeConfig(cookies=str(cookies)))
    assert isinstance(source.fetch(segment("whole")), Media)
    (process,) = source._idle
    assert "name\tvalue" in process.cookies.read_text()
    assert process.cookies.stat().st_mode & 0o077 == 0
    assert cookies.read_bytes() == content
    assert "value" not in repr(source.config)
    source.close()
    assert not process.cookies.exists()


def test_403_is_retried_once_before_the_address_counts_as_blocked(source: YouTubeSource, mirror: Mirror) -> None:
    mirror.num_requests.clear()
    failure = source.fetch(segment("status403"))
    assert isinstance(failure, Failure)
    assert failure.reason.category is FailureCategory.THROTTLED
    num_blocked = mirror.num_requests["status403"]
    source.fetch(segment("status503"))
    assert num_blocked == 2 * mirror.num_requests["status503"]


def test_proxy_refusal_ends_the_run_without_revealing_the_secret(source: YouTubeSource, mirror: Mirror) -> None:
    proxy = mirror.address.replace("://", "://user:secret@")
    with pytest.raises(ConfigError, match=r"proxy 127.0.0.1:\d+: the proxy refuses .* --fetch.proxies") as raised:
        source.fetch(segment("status407"), proxy)
    assert "secret" not in str(raised.value)


def test_full_disk_ends_the_run(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/proc/self")  # a folder that accepts no files
    with pytest.raises(StoreError, match="can't start a yt-dlp process in /proc/self"):
        open_source(mirror).fetch(segment("whole"))


def audio(format_id: str, kbps: float, language: str | None = None, language_preference: int = -1, **more) -> dict:
    """Describe an audio-only format as yt-dlp's YouTube extractor does."""
    opus = format_id.startswith(("249", "250", "251", "600"))
    quality = {"599": 0, "600": 0, "139": 1, "249": 1, "250": 1, "233": 1}.get(format_id[:3], 3)
    return {
        "format_id": format_id,
        "url": f"https://media.invalid/{format_id}",
        "ext": "webm" if opus else "m4a",
        "acodec": "opus" if opus else "mp4a.40.2",
        "vcodec": "none",
        "protocol": "https",
        "tbr": kbps,
        "filesize": int(kbps * 30_000),
        "quality": quality - ("drc" in format_id) / 2,
        "language": language,
        "language_preference": language_preference,
        "source_preference": -1,
    } | more


def video(format_id: str, height: int, acodec: str = "none", **more) -> dict:
    codecs = {"ext": "mp4", "acodec": acodec, "vcodec": "avc1.4d401e", "height": height, "quality": height / 40}
    return audio(format_id, height * 2) | codecs | more


def m3u8(format_id: str, *arguments, **more) -> dict:
    return audio(format_id, *arguments, protocol="m3u8_native", filesize=None, **more)


VIDEOS = [video("160", 144), video("18", 360, "mp4a.40.2"), video("136", 720)]
PLAIN = [audio("139", 49), audio("249", 51), audio("250", 68), audio("140", 130), audio("251", 135), *VIDEOS]


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        pytest.param(PLAIN, "139", id="the smallest"),
        pytest.param(
            [audio("139-drc", 48), audio("249-drc", 50), *PLAIN],
            "139",
            id="not the one with levelled dynamics, though it is smaller",
        ),
        pytest.param(
            [
                *(audio(f"{itag}-es", kbps, "es") for itag, kbps in (("600", 31), ("139", 48), ("251", 120))),
                *(audio(f"{itag}-0", kbps, "en", 10) for itag, kbps in (("139", 49), ("251", 135))),
                audio("139-drc", 48, "en", 10),
                audio("600-desc", 30, "en-desc", -10),
                *VIDEOS,
            ],
            "139-0",
            id="the original among dubbed and described tracks",
        ),
        pytest.param(
            [audio("139-de", 40, "de"), audio("139-en", 49, "en", 5), *VIDEOS],
            "139-en",
            id="the default where none is called original",
        ),
        pytest.param(
            [audio("139-es", 48, "es"), m3u8("233-0", 49, "en", 10), m3u8("233-1", 45, "es"), *VIDEOS],
            "233-0",
            id="the original, though it comes in fragments",
        ),
        pytest.param([m3u8("233", 40), *PLAIN], "139", id="one file rather than fragments"),
        pytest.param([audio("600", 30, preference=-10), *PLAIN], "139", id="not the one that yt-dlp takes for damaged"),
        pytest.param([audio("140-drc", 130), *VIDEOS], "140-drc", id="levelled rather than none"),
        pytest.param(
            [video("18", 360, "mp4a.40.2"), video("22", 720, "mp4a.40.2"), video("160", 144)],
            "18",
            id="the smallest with video where no audio stands alone",
        ),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_yt_dlp_chooses_the_original_track(formats: list[dict], expected: str, reverse: bool, tmp_path: Path) -> None:
    request = {"max_bytes": 1, "extractors": ["youtube"], "options": {}}
    info: Any = {
        "id": "--PJHxphWEs",
        "title": "title",
        "extractor": "youtube",
        "extractor_key": "Youtube",
        "formats": [dict(format) for format in (reversed(formats) if reverse else formats)],
        # YouTube's extractor ranks languages after quality, codecs and channels.
        "_format_sort_fields": ("quality", "res", "fps", "hdr:12", "source", "vcodec", "channels", "acodec", "lang"),
    }
    options: Any = yt_dlp_options(request, tmp_path)
    with YoutubeDL(options) as youtube:
        chosen: Any = youtube.process_ie_result(info, download=False)
    assert chosen["format_id"] == expected


def test_missing_secrets_file_is_reported(mirror: Mirror) -> None:
    with pytest.raises(ConfigError, match=r"can't read /nowhere/cookies.txt"):
        open_source(mirror, YouTubeConfig(cookies="/nowhere/cookies.txt"))


def test_hanging_attempt_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        def fetch(self, segment, proxy=None):
            released.wait(SILENCE_S)

    released = threading.Event()
    monkeypatch.setattr("pipeline.sources.fetch.GRACE_S", 0.1)
    failure = fetch_within(Hanging(), segment("any"), None, deadline_s=0.2)  # pyright: ignore[reportArgumentType]
    released.set()
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TIMED_OUT
