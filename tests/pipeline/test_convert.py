import dataclasses
import errno
import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.config import FetchConfig, RateLimitConfig
from pipeline.convert import Conversion, _convert_clips, convert_shard, recover_partial_shard
from pipeline.errors import LeaseError, StoreError
from pipeline.measures.table import read_shard_measures
from pipeline.miniature import Fault, Miniature
from pipeline.records import CLIPS_PER_PART, Failure, Media, Reason, Segment, ShardPlan, ShardReport
from pipeline.shards.format import read_sidecar
from pipeline.shards.journal import ClipResult, Journal, partial_shards
from pipeline.sources import FolderSource
from pipeline.sources.fetch import Fetched, fetch_clip
from pipeline.sources.rate_limit import LocalRateLimiter, Wait
from pipeline.store.layout import Shard
from pipeline.store.lock import hold_lease
from pipeline.store.storage import Store


def rows_of(store: Store) -> dict[str, dict]:
    names = store.list("shards", ".parquet")
    return {row["key"]: row for name in names for row in read_sidecar(store, name).to_pylist()}


def convert(plan: ShardPlan, conversion: Conversion) -> ShardReport:
    report = convert_shard(plan, conversion)
    assert isinstance(report, ShardReport)
    return report


def test_counts_match_the_planned_faults(
    miniature: Miniature, conversion: Conversion, reports: list[ShardReport]
) -> None:
    rows = rows_of(conversion.store)
    assert rows.keys() == {clip.segment.key for clip in miniature.clips}
    expected = {clip.segment.key: clip.fault.reason or "" if clip.fault else "" for clip in miniature.clips}
    assert {key: row["reason"] for key, row in rows.items()} == expected
    assert all((row["status"] == "written") == (row["reason"] == "") for row in rows.values())

    failures = sum((Counter(report.failures) for report in reports), Counter())
    assert failures == Counter(reason for reason in expected.values() if reason)
    assert sum(report.num_planned for report in reports) == len(miniature.clips)
    assert all(report.num_planned == report.num_written + sum(report.failures.values()) for report in reports)
    assert all(report.is_new for report in reports)


def test_attempts_and_frames_match_each_fault(miniature: Miniature, small_store: Store) -> None:
    rows = rows_of(small_store)
    by_fault = {clip.fault: rows[clip.segment.key] for clip in miniature.clips}
    assert by_fault[None]["attempts"] == 1
    assert (by_fault[Fault.BUSY_TWICE]["attempts"], by_fault[Fault.BUSY_TWICE]["status"]) == (3, "written")
    assert by_fault[Fault.STALL]["attempts"] == 3
    assert by_fault[Fault.MISSING]["attempts"] == 1
    assert by_fault[Fault.SHORT]["detail"] == "short"
    assert "404" in by_fault[Fault.MISSING]["detail"]
    whole = next(clip for clip in miniature.clips if clip.fault is None)
    row = rows[whole.segment.key]
    length_ms = whole.segment.end_ms - whole.segment.start_ms
    assert row["num_frames"] == 1 + (length_ms - 25) // 10
    assert by_fault[Fault.SHORT]["num_frames"] < 998


def test_finished_shard_is_not_rewritten(
    conversion: Conversion, plans: list[ShardPlan], reports: list[ShardReport]
) -> None:
    files = [Path(conversion.store.path(name)) for name in conversion.store.list("shards")]
    before = {file: file.stat().st_mtime_ns for file in files}
    again = [convert(plan, conversion) for plan in plans]
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert again == [dataclasses.replace(report, is_new=False, num_bytes=0) for report in reports]


def test_truncated_shard_is_rewritten_with_identical_bytes(
    conversion: Conversion, miniature: Miniature, plans: list[ShardPlan], tmp_path: Path
) -> None:
    source = FolderSource(str(miniature.media_folder), conversion.fetch)
    here = Conversion(Store(str(tmp_path)), source, conversion.fetch, keep_audio=True)
    convert_shard(plans[-1], here)
    tar, sidecar = plans[-1].shard.tar, plans[-1].shard.sidecar
    content = here.store.read_bytes(tar)
    here.store.remove(sidecar)
    here.store.write_bytes(tar, b"half")
    assert convert(plans[-1], here).is_new
    assert here.store.read_bytes(tar) == content
    assert here.store.exists(sidecar)


class FailingSource:
    """A source without any media."""

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        return Failure(Reason.REMOVED, "gone")


def test_shard_without_clips_consists_of_a_sidecar(
    conversion: Conversion, plans: list[ShardPlan], tmp_path: Path
) -> None:
    here = dataclasses.replace(conversion, store=Store(str(tmp_path)), source=FailingSource())
    report = convert(plans[0], here)
    assert (report.num_written, report.failures) == (0, {Reason.REMOVED: len(plans[0].segments)})
    assert here.store.list("shards") == [plans[0].shard.sidecar]
    assert {row["detail"] for row in rows_of(here.store).values()} == {"gone"}


def test_damaged_media_fail_only_their_clips(
    conversion: Conversion, plans: list[ShardPlan], miniature: Miniature, tmp_path: Path
) -> None:
    clips = {clip.segment.ytid: clip for clip in miniature.clips}

    class HostileSource:
        """A source that truncates every second file."""

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            name = clips[segment.ytid].file_name
            content = (miniature.media_folder / name).read_bytes() if name else b""
            place = plans[-1].segments.index(segment)
            return Media(content if place % 2 else content[: 50 * place], "memory")

    here = dataclasses.replace(conversion, store=Store(str(tmp_path)), source=HostileSource(), keep_audio=False)
    report = convert(plans[-1], here)
    assert report.num_planned == report.num_written + sum(report.failures.values())
    assert report.num_written == len(plans[-1].segments) // 2


@pytest.mark.parametrize("keep_audio", [True, False])
def test_keep_audio_stores_flac(
    keep_audio: bool, conversion: Conversion, miniature: Miniature, plans: list[ShardPlan], tmp_path: Path
) -> None:
    source = FolderSource(str(miniature.media_folder), conversion.fetch)
    here = Conversion(Store(str(tmp_path)), source, conversion.fetch, keep_audio)
    convert_shard(plans[-1], here)
    written = [row for row in rows_of(here.store).values() if row["status"] == "written"]
    assert {row["audio_bytes"] > 0 for row in written} == {keep_audio}


class CountingSource:
    """A slow source that fails every clip permanently and logs each request."""

    def __init__(self, log: Path, pause_s: float):
        self.log = log
        self.pause_s = pause_s

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        with self.log.open("a") as file:
            file.write(f"{segment.ytid}\n")
        time.sleep(self.pause_s)
        return Failure(Reason.REMOVED, "gone")


def convert_here(plan: ShardPlan, conversion: Conversion) -> None:
    convert_shard(plan, conversion)


@pytest.mark.process
def test_kill_costs_at_most_sixteen_clips(tmp_path: Path) -> None:
    store, log = Store(str(tmp_path / "store")), tmp_path / "log"
    segments = tuple(Segment(f"{number:011d}", 0, 10_000, ("/m/1",), "eval") for number in range(300))
    plan = ShardPlan(Shard("eval", "shard"), segments, (0,) * len(segments))
    conversion = Conversion(store, CountingSource(log, 0.005), FetchConfig(), keep_audio=False)
    context, chance, num_kills = multiprocessing.get_context("fork"), random.Random(0), 0
    while True:
        process = context.Process(target=convert_here, args=(plan, conversion))
        process.start()
        process.join(chance.uniform(0.03, 0.15))
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        num_kills += 1
    asked = log.read_text().split()
    assert process.exitcode == 0
    assert num_kills >= 2
    assert len(asked) - len(segments) <= 16 * num_kills
    assert set(asked) == {segment.ytid for segment in segments}
    assert list(rows_of(store)) == [segment.key for segment in segments]
    assert partial_shards(store, conversion.fingerprint) == []


def test_clips_of_a_killed_run_become_a_shard(
    conversion: Conversion, miniature: Miniature, plans: list[ShardPlan], small_store: Store, tmp_path: Path
) -> None:
    class EndingSource(FolderSource):
        """A source that raises an illegal exception at the last clip."""

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            if segment == long.segments[-1]:
                raise SystemExit
            return super().fetch(segment)

    segments = tuple(segment for plan in plans[:4] for segment in plan.segments)
    long = ShardPlan(Shard(plans[0].shard.split, "long"), segments, (0,) * len(segments))
    here = dataclasses.replace(
        conversion,
        store=Store(str(tmp_path)),
        source=EndingSource(str(miniature.media_folder), conversion.fetch),
    )
    with pytest.raises(SystemExit):
        convert_shard(long, here)
    (journal,) = partial_shards(here.store, here.fingerprint)
    report = recover_partial_shard(journal, here)
    assert report
    num_kept = (len(segments) - 1) // CLIPS_PER_PART * CLIPS_PER_PART
    assert report.num_planned == num_kept
    rows = rows_of(here.store)
    assert list(rows) == [segment.key for segment in segments[:num_kept]]
    assert {row["attempts"] for row in rows.values()} == {1}
    in_one_go = rows_of(small_store)
    written = [key for key, row in rows.items() if row["status"] == in_one_go[key]["status"] == "written"]
    assert written
    assert all(rows[key]["digest"] == in_one_go[key]["digest"] for key in written)
    assert partial_shards(here.store, here.fingerprint) == []
    expected, measures = measures_of(small_store), measures_of(here.store)
    assert measures.keys() == {key for key, row in rows.items() if row["status"] == "written"}
    assert all(measures[key] == expected[key] for key in written)


def measures_of(store: Store) -> dict[str, dict]:
    names = store.list("quality", ".parquet")
    tables = [read_shard_measures(store, Shard.of(name.removeprefix("quality/"))) for name in names]
    return {row["key"]: row for table in tables if table for row in table.to_pylist()}


def test_written_clips_are_measured(conversion: Conversion, plans: list[ShardPlan], reports: list[ShardReport]) -> None:
    store = conversion.store
    rows, measures = rows_of(store), measures_of(store)
    assert measures.keys() == {key for key, row in rows.items() if row["status"] == "written"}
    for row in measures.values():
        assert row["rate_hz"] > 0 and row["codec"] and row["peak"] > 0 and row["rms_db"] > -120
    assert store.list("quality") == [Shard.of(name).measures for name in store.list("shards", ".tar")]


@pytest.mark.parametrize("measures", [None, b'{"peak": 0.5}'], ids=["missing", "encoded"])
def test_journals_of_earlier_versions_are_measured_again(
    measures: bytes | None,
    conversion: Conversion,
    miniature: Miniature,
    plans: list[ShardPlan],
    small_store: Store,
    tmp_path: Path,
) -> None:
    source = FolderSource(str(miniature.media_folder), conversion.fetch)
    here = dataclasses.replace(conversion, store=Store(str(tmp_path)), source=source)
    journal = Journal(here.store, here.fingerprint, Shard(plans[0].shard.split, "old"))
    journal.append(0, [result for result in _convert_clips(plans[0], here, journal) if isinstance(result, ClipResult)])
    (part,) = here.store.list(journal.folder)
    old = pa.ipc.open_file(here.store.read_bytes(part)).read_all().drop_columns("measures")
    if measures:
        old = old.append_column("measures", pa.array([measures] * len(old)))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, old.schema) as writer:
        writer.write_table(old)
    here.store.write_bytes(part, sink.getvalue().to_pybytes())
    assert recover_partial_shard(journal, here)
    expected, found = measures_of(small_store), measures_of(here.store)
    # Measures of the audio are recomputed; facts about the encoded media are lost.
    served = found.keys() & expected.keys()
    assert served
    for key, row in ((key, found[key]) for key in served):
        assert row["rms_db"] == pytest.approx(expected[key]["rms_db"], abs=0.01)
        assert (row["silence"], row["codec"], row["peak"]) == (expected[key]["silence"], None, None)


def test_throttled_shard_resumes_from_its_journal(
    conversion: Conversion, plans: list[ShardPlan], tmp_path: Path
) -> None:
    asked: Counter[str] = Counter()

    class ThrottlingSource:
        """A source that throttles once, in the middle of the shard."""

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            asked[segment.key] += 1
            if segment == plans[0].segments[4] and asked[segment.key] == 1:
                return Failure(Reason.RATE_LIMITED, "HTTP 429")
            return Failure(Reason.REMOVED, "gone")

    here = dataclasses.replace(
        conversion,
        store=Store(str(tmp_path)),
        source=ThrottlingSource(),
        fetch=dataclasses.replace(conversion.fetch, num_threads=1),
        limiter=LocalRateLimiter(RateLimitConfig(cooldown_s=6)),
    )
    wait = convert_shard(plans[0], here)
    assert isinstance(wait, Wait)
    assert wait.is_cooldown
    assert here.store.list("shards") == []
    report = convert(plans[0], dataclasses.replace(here, limiter=LocalRateLimiter()))
    assert report.failures == {Reason.REMOVED: len(plans[0].segments)}
    assert asked == Counter({segment.key: 1 for segment in plans[0].segments} | {plans[0].segments[4].key: 2})
    assert {row["attempts"] for row in rows_of(here.store).values()} == {1}


def test_permanently_throttled_clip_fails(
    conversion: Conversion, plans: list[ShardPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.rate_limit.PROBE_POLL_S", 0.01)

    class ThrottlingSource:
        """A source that always throttles one clip."""

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            reason = Reason.RATE_LIMITED if segment == plans[0].segments[0] else Reason.REMOVED
            return Failure(reason, "no")

    here = dataclasses.replace(
        conversion,
        store=Store(str(tmp_path)),
        source=ThrottlingSource(),
        limiter=LocalRateLimiter(RateLimitConfig(cooldown_s=0.01, max_cooldown_s=0.02)),
    )
    report = convert(plans[0], here)
    assert report.failures[Reason.RATE_LIMITED] == 1
    assert report.num_planned == sum(report.failures.values())


class DownSource:
    """A source that serves the first clips and fails afterwards."""

    def __init__(self, num_answered: int, reason: Reason):
        self.num_answered = num_answered
        self.reason = reason

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        if int(segment.ytid) < self.num_answered:
            return Failure(Reason.REMOVED, "gone")
        return Failure(self.reason, "down")


@pytest.mark.parametrize("reason", [Reason.CONNECTION, Reason.SERVER_ERROR, Reason.LOGIN_REQUIRED, Reason.UNKNOWN])
@pytest.mark.parametrize("num_threads", [1, 8])
def test_outage_costs_no_attempts(reason: Reason, num_threads: int, tmp_path: Path) -> None:
    segments = tuple(Segment(f"{number:011d}", 0, 10_000, ("/m/1",), "eval") for number in range(30))
    plan = ShardPlan(Shard("eval", "shard"), segments, (0,) * len(segments))
    fetch = FetchConfig(num_threads=num_threads, backoff_s=0.001)
    source = DownSource(12, reason)
    conversion = Conversion(Store(str(tmp_path)), source, fetch, keep_audio=False)
    wait = convert_shard(plan, conversion)
    assert isinstance(wait, Wait)
    assert wait.is_outage
    assert conversion.store.list("shards") == []
    assert conversion.limiter.status().outage == "down"
    up = dataclasses.replace(conversion, source=DownSource(30, reason), limiter=LocalRateLimiter())
    assert convert(plan, up).failures == {Reason.REMOVED: 30}
    assert [row["attempts"] for row in rows_of(conversion.store).values()] == [1] * 30


def test_retried_clips_count_as_no_outage(tmp_path: Path) -> None:
    segments = tuple(Segment(f"{number:011d}", 0, 10_000, ("/m/1",), "eval") for number in range(10))
    plan = ShardPlan(Shard("eval", "shard"), segments, (3,) * len(segments))
    fetch = FetchConfig(backoff_s=0.001)
    report = convert(
        plan, Conversion(Store(str(tmp_path)), DownSource(0, Reason.SERVER_ERROR), fetch, keep_audio=False)
    )
    assert report.failures == {Reason.SERVER_ERROR: 10}


def test_full_disk_is_the_only_os_error_that_ends_a_shard(
    conversion: Conversion, plans: list[ShardPlan], tmp_path: Path
) -> None:
    class Raising:
        """A source that raises the same error for each clip."""

        def __init__(self, error: Exception):
            self.error = error

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            raise self.error

    here = dataclasses.replace(conversion, store=Store(str(tmp_path)), limiter=LocalRateLimiter())
    full = dataclasses.replace(here, source=Raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(StoreError, match=r"no space to fetch .*: .*No space left on device; free some"):
        convert_shard(plans[0], full)
    denied = dataclasses.replace(here, source=Raising(PermissionError(errno.EACCES, "not for you")))
    result = fetch_clip(plans[0].segments[0], denied.fetcher)
    assert isinstance(result, Fetched)
    failure = result.media
    assert isinstance(failure, Failure)
    assert (failure.reason, result.num_attempts) == (Reason.UNKNOWN, conversion.fetch.max_attempts)
    assert "PermissionError: [Errno 13] not for you" in failure.detail


def test_bug_is_reported_with_its_clip(
    conversion: Conversion, plans: list[ShardPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(media: Media, start_ms: int, end_ms: int) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("pipeline.convert.decode_segment", fail)
    here = dataclasses.replace(conversion, store=Store(str(tmp_path)))
    keys = "|".join(segment.key for segment in plans[1].segments)  # this shard contains no stalling clip
    with pytest.raises(RuntimeError, match=f"can't convert clip ({keys}): IndexError: list index out of range"):
        convert_shard(plans[1], here)


@pytest.mark.parametrize("lost_after", [0, CLIPS_PER_PART + 1])
def test_task_without_a_lease_writes_nothing(tmp_path: Path, lost_after: int) -> None:
    store = Store(str(tmp_path))
    segments = tuple(Segment(f"v{n:010d}", 0, 10_000, ("/m/a",), "eval") for n in range(2 * CLIPS_PER_PART))
    plan = ShardPlan(Shard("eval", "shard"), segments, (0,) * len(segments))

    class TakenOverSource:
        def __init__(self):
            self.num_fetched = 0

        def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
            self.num_fetched += 1
            if self.num_fetched == lost_after + 1:
                store.write_json("lease/00000002.json", store.read_json("lease/00000001.json"))
            return Failure(Reason.NOT_FOUND, "gone")

    with hold_lease(store) as lease:
        fetch = FetchConfig(num_threads=1)
        conversion = Conversion(store, TakenOverSource(), fetch, keep_audio=False, lease=lease.guard)
        with pytest.raises(LeaseError, match="lost its lease"):
            convert_shard(plan, conversion)
    assert store.list("shards") == []
    assert len(store.list("parts")) <= lost_after // CLIPS_PER_PART
