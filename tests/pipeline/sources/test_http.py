import pickle
import ssl
import subprocess
import threading
import tracemalloc
from dataclasses import replace
from email.utils import format_datetime
from http.server import HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FetchConfig, RateLimitConfig
from pipeline.convert import Conversion, convert_shard
from pipeline.errors import ConfigError
from pipeline.records import Failure, FailureCategory, Media, Reason, ShardPlan, ShardReport
from pipeline.shards.format import read_sidecar
from pipeline.sources.fetch import fetch_within
from pipeline.sources.http import MAX_RETRY_AFTER_S, HttpSource, parse_content_length, parse_retry_after
from pipeline.sources.rate_limit import LocalRateLimiter
from pipeline.store.layout import Shard
from pipeline.store.storage import Store
from tests.mirror import BAD_LOCATIONS, SILENCE_S, Handler, Mirror, segment

FETCH = FetchConfig(deadline_s=10, max_media_bytes=2**20)


@pytest.fixture
def source(mirror: Mirror) -> HttpSource:
    return HttpSource(mirror.address + "/{ytid}.flac", FETCH)


@pytest.mark.parametrize("path", ["{ytid", "{ytid:d}", "{ytid.name}", "{}", "clip", "{ytid}-{title}"])
def test_invalid_template_is_rejected(path: str) -> None:
    with pytest.raises(ConfigError, match=r"expected an address with \{ytid\}"):
        HttpSource(f"http://mirror/{path}", FETCH)


def test_interrupted_body_is_resumed(source: HttpSource, mirror: Mirror) -> None:
    mirror.ranges.clear()
    media = source.fetch(segment("cut"))
    assert isinstance(media, Media), media
    assert media.content == mirror.content
    assert mirror.ranges[0] == f"bytes={len(mirror.content) // 2}-"


@pytest.mark.parametrize(
    ("ytid", "reason"),
    [
        ("status404", Reason.NOT_FOUND),
        ("status429", Reason.RATE_LIMITED),
        ("status500", Reason.SERVER_ERROR),
        ("short", Reason.TRUNCATED),
        ("endless", Reason.TOO_LARGE),
        ("length", Reason.TOO_LARGE),
    ],
)
def test_failures_are_classified(source: HttpSource, ytid: str, reason: Reason) -> None:
    failure = source.fetch(segment(ytid))
    assert isinstance(failure, Failure)
    assert failure.reason is reason, failure.detail


def test_retry_after_is_parsed_and_bounded(source: HttpSource) -> None:
    waits = {}
    for ytid in ("patience", *(f"patience{n}" for n in range(1, 6))):
        failure = source.fetch(segment(ytid))
        assert isinstance(failure, Failure)
        assert failure.reason is Reason.RATE_LIMITED, failure.detail
        waits[ytid] = failure.retry_after_s
    assert list(waits.values()) == [MAX_RETRY_AFTER_S, 7.0, None, MAX_RETRY_AFTER_S, None, None]


@given(st.text() | st.integers().map(str) | st.datetimes().map(format_datetime) | st.from_regex(r"\A\w+, \d+ \w+ \d+"))
def test_arbitrary_headers_are_parsed(value: str) -> None:
    wait_s = parse_retry_after(value)
    assert wait_s is None or 0 <= wait_s <= MAX_RETRY_AFTER_S
    assert 0 <= parse_content_length(value) < 10**18


@pytest.mark.parametrize("number", range(len(BAD_LOCATIONS)))
def test_redirect_to_invalid_address_fails_only_its_clip(source: HttpSource, number: int) -> None:
    failure = source.fetch(segment(f"redirect{number}"))
    assert isinstance(failure, Failure)
    assert failure.reason.category is FailureCategory.TRANSIENT, failure
    assert len(failure.detail) < 300


def test_proxy_that_requires_a_password_ends_the_run(source: HttpSource, mirror: Mirror) -> None:
    proxy = mirror.address.replace("://", "://user:secret@")
    with pytest.raises(ConfigError, match=r"proxy 127.0.0.1:\d+ refuses .* --fetch.proxies") as raised:
        source.fetch(segment("status407"), proxy)
    assert "secret" not in str(raised.value)
    # Without a proxy, a 407 fails only its clip.
    assert isinstance(source.fetch(segment("status407")), Failure)


def test_invalid_certificate_ends_the_run(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*openssl, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.handle_request, daemon=True).start()
        template = f"https://127.0.0.1:{server.server_address[1]}/{{ytid}}.flac"
        with pytest.raises(ConfigError, match=r"certificate can't be verified; check this machine's clock"):
            HttpSource(template, FETCH).fetch(segment("whole"))


def test_content_type_is_ignored(source: HttpSource, mirror: Mirror) -> None:
    media = source.fetch(segment("liar"))
    assert isinstance(media, Media)
    assert media.content == mirror.content


@pytest.mark.slow
def test_bad_mirror_causes_classified_failures_in_little_memory(mirror: Mirror, tmp_path: Path) -> None:
    bad = {
        "page": Reason.NOT_MEDIA,
        "endless": Reason.TOO_LARGE,
        "short": Reason.TRUNCATED,
        "status429": Reason.RATE_LIMITED,
        "bomb1": Reason.OUT_OF_RANGE,
    }
    starts_ms = {"bomb": 35_000_000, "bomb1": 40_000_000}
    names = [*bad, "liar", "bomb", "whole"]
    segments = tuple(segment(name, starts_ms.get(name, 0), starts_ms.get(name, 0) + 10_000) for name in names)
    fetch = replace(FETCH, max_attempts=1, num_threads=2)
    source = HttpSource(mirror.address + "/{ytid}.flac", fetch)
    limiter = LocalRateLimiter(RateLimitConfig(cooldown_s=0.01))
    conversion = Conversion(Store(str(tmp_path)), source, fetch, keep_audio=False, limiter=limiter)
    tracemalloc.start()
    report = convert_shard(ShardPlan(Shard("eval", "shard"), segments, (0,) * len(names)), conversion)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    assert isinstance(report, ShardReport)
    assert report.failures == dict.fromkeys(bad.values(), 1)
    rows = read_sidecar(conversion.store, "shards/eval/shard.parquet").to_pylist()
    assert {row["ytid"]: row["reason"] for row in rows if row["status"] == "failed"} == bad
    assert [row["num_frames"] for row in rows if row["status"] == "written"] == [998] * 3


def test_single_bad_answers_end_no_shard_and_count_as_no_outage(mirror: Mirror, tmp_path: Path) -> None:
    odd = [*(f"redirect{number}" for number in range(len(BAD_LOCATIONS))), "length", "patience3", "status500"]
    names = [name for number, each in enumerate(odd) for name in (each, f"whole{number}")]
    fetch = replace(FETCH, max_attempts=1, num_threads=1)
    source = HttpSource(mirror.address + "/{ytid}.flac", fetch)
    limiter = LocalRateLimiter(RateLimitConfig(cooldown_s=0.01, max_cooldown_s=0.01))
    conversion = Conversion(Store(str(tmp_path)), source, fetch, keep_audio=False, limiter=limiter)
    plan = ShardPlan(Shard("eval", "shard"), tuple(map(segment, names)), (0,) * len(names))
    report = convert_shard(plan, conversion)
    assert isinstance(report, ShardReport)
    rows = read_sidecar(conversion.store, "shards/eval/shard.parquet").to_pylist()
    assert [row["ytid"] for row in rows if row["status"] == "failed"] == odd
    assert all(row["detail"] for row in rows if row["status"] == "failed")


@pytest.mark.slow
@pytest.mark.parametrize("ytid", ["mute", "trickle"])
def test_deadline_ends_silent_and_slow_responses(mirror: Mirror, ytid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.fetch.GRACE_S", 0.3)
    monkeypatch.setattr("pipeline.sources.http.READ_TIMEOUT_S", 2 * SILENCE_S)
    source = HttpSource(mirror.address + "/{ytid}.flac", replace(FETCH, deadline_s=0.5))
    with mirror.silence():
        failure = fetch_within(source, segment(ytid), None, 0.5)
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TIMED_OUT


def test_requests_go_through_the_proxy(source: HttpSource, mirror: Mirror) -> None:
    elsewhere = HttpSource("http://mirror.invalid/{ytid}.flac", FETCH)
    # The server treats the full address as an unknown path and sends the media.
    media = elsewhere.fetch(segment("whole"), proxy=mirror.address)
    assert isinstance(media, Media)
    failure = source.fetch(segment("whole"), proxy="http://127.0.0.1:1")
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.CONNECTION
    nobody = HttpSource("http://127.0.0.1:1/{ytid}.flac", FETCH).fetch(segment("whole"))
    assert isinstance(nobody, Failure)
    assert "Connection refused" in nobody.detail


def test_pickled_source_works(source: HttpSource) -> None:
    assert isinstance(pickle.loads(pickle.dumps(source)).fetch(segment("whole")), Media)
