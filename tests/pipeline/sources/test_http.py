import pickle
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import FetchConfig, PaceConfig
from pipeline.convert import Conversion, convert_shard
from pipeline.records import Failure, Media, Reason, ShardPlan, ShardReport
from pipeline.shards.format import read_sidecar
from pipeline.sources import fetch_within
from pipeline.sources.http import HttpSource
from pipeline.sources.rate_limit import LocalPacer
from pipeline.store.storage import Store
from tests.mirror import Mirror, segment

FETCH = FetchConfig(deadline_s=10, max_media_bytes=2**20)


@pytest.fixture
def source(mirror: Mirror) -> HttpSource:
    return HttpSource(mirror.address + "/{ytid}.flac", FETCH)


def test_a_body_that_breaks_off_is_taken_up_where_it_broke_off(source: HttpSource, mirror: Mirror) -> None:
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
    ],
)
def test_each_failure_has_its_name(source: HttpSource, ytid: str, reason: Reason) -> None:
    failure = source.fetch(segment(ytid))
    assert isinstance(failure, Failure)
    assert failure.reason is reason, failure.detail


def test_a_server_that_asks_for_patience_is_understood(source: HttpSource) -> None:
    waits = {}
    for ytid in ("patience", "patience1", "patience2"):
        failure = source.fetch(segment(ytid))
        assert isinstance(failure, Failure)
        assert failure.reason is Reason.RATE_LIMITED, failure.detail
        waits[ytid] = failure.retry_after_s
    assert waits.pop("patience") > 1e9  # a date in the year 2100, of a 503
    assert waits == {"patience1": 7.0, "patience2": None}


def test_a_wrong_content_type_does_not_matter(source: HttpSource, mirror: Mirror) -> None:
    media = source.fetch(segment("liar"))
    assert isinstance(media, Media)
    assert media.content == mirror.content


def test_what_a_bad_mirror_sends_becomes_named_failures_in_little_memory(mirror: Mirror, tmp_path: Path) -> None:
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
    pacer = LocalPacer(PaceConfig(rest_s=0.01))
    conversion = Conversion(Store(str(tmp_path)), source, fetch, keep_audio=False, pacer=pacer)
    tracemalloc.start()
    started = time.monotonic()
    report = convert_shard(ShardPlan("shard", "eval", segments, (0,) * len(names)), conversion)
    assert time.monotonic() - started < 30
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    assert isinstance(report, ShardReport)
    assert report.failures == dict.fromkeys(bad.values(), 1)
    rows = read_sidecar(conversion.store, "shards/eval/shard.parquet").to_pylist()
    assert {row["ytid"]: row["reason"] for row in rows if row["status"] == "failed"} == bad
    assert [row["num_frames"] for row in rows if row["status"] == "written"] == [998] * 3


@pytest.mark.parametrize("ytid", ["mute", "trickle"])
def test_the_deadline_holds(mirror: Mirror, ytid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.source.GRACE_S", 0.3)
    source = HttpSource(mirror.address + "/{ytid}.flac", replace(FETCH, deadline_s=0.5))
    started = time.monotonic()
    failure = fetch_within(source, segment(ytid), None, 0.5)
    assert time.monotonic() - started < 1.5
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.TIMED_OUT


def test_it_asks_through_the_proxy(source: HttpSource, mirror: Mirror) -> None:
    elsewhere = HttpSource("http://mirror.invalid/{ytid}.flac", FETCH)
    # The server takes the full address for a path that it doesn't know, and sends the media.
    media = elsewhere.fetch(segment("whole"), proxy=mirror.address)
    assert isinstance(media, Media)
    failure = source.fetch(segment("whole"), proxy="http://127.0.0.1:1")
    assert isinstance(failure, Failure)
    assert failure.reason is Reason.CONNECTION


def test_a_copy_in_another_process_works(source: HttpSource) -> None:
    assert isinstance(pickle.loads(pickle.dumps(source)).fetch(segment("whole")), Media)
