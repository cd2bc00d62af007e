import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from pipeline.convert import Conversion, convert_shard
from pipeline.miniature import Fault, Miniature
from pipeline.records import Failure, Media, Reason, Segment, ShardPlan, ShardReport
from pipeline.shards import read_sidecar, shard_name
from pipeline.sources import FolderSource
from pipeline.storage import Store


def rows_of(store: Store) -> dict[str, dict]:
    names = store.list("shards", ".parquet")
    return {row["key"]: row for name in names for row in read_sidecar(store, name).to_pylist()}


def convert(plan: ShardPlan, conversion: Conversion) -> ShardReport:
    report = convert_shard(plan, conversion)
    assert isinstance(report, ShardReport)
    return report


def test_the_books_balance_with_the_planned_faults(
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


def test_each_fault_is_met_as_its_kind_asks(miniature: Miniature, small_store: Store) -> None:
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


def test_a_finished_shard_is_not_touched(
    conversion: Conversion, plans: list[ShardPlan], reports: list[ShardReport]
) -> None:
    files = [Path(conversion.store.path(name)) for name in conversion.store.list("shards")]
    before = {file: file.stat().st_mtime_ns for file in files}
    again = [convert(plan, conversion) for plan in plans]
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert again == [dataclasses.replace(report, is_new=False, num_bytes=0) for report in reports]


def test_a_shard_that_was_cut_off_is_made_again_with_the_same_bytes(
    conversion: Conversion, miniature: Miniature, plans: list[ShardPlan], tmp_path: Path
) -> None:
    source = FolderSource(str(miniature.media_folder), conversion.fetch)
    here = Conversion(Store(str(tmp_path)), source, conversion.fetch, keep_audio=True)
    convert_shard(plans[-1], here)
    tar, sidecar = (shard_name(plans[-1].split, plans[-1].shard_id, extension) for extension in ("tar", "parquet"))
    content = here.store.read_bytes(tar)
    here.store.remove(sidecar)
    here.store.write_bytes(tar, b"half")
    assert convert(plans[-1], here).is_new
    assert here.store.read_bytes(tar) == content
    assert here.store.exists(sidecar)


class FailingSource:
    """Has nothing."""

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        return Failure(Reason.REMOVED, "gone")


def test_a_shard_without_clips_has_a_sidecar_only(
    conversion: Conversion, plans: list[ShardPlan], tmp_path: Path
) -> None:
    here = dataclasses.replace(conversion, store=Store(str(tmp_path)), source=FailingSource())
    report = convert(plans[0], here)
    assert (report.num_written, report.failures) == (0, {Reason.REMOVED: len(plans[0].segments)})
    assert here.store.list("shards") == [shard_name(plans[0].split, plans[0].shard_id, "parquet")]
    assert {row["detail"] for row in rows_of(here.store).values()} == {"gone"}


def test_bytes_that_no_decoder_takes_end_no_shard(
    conversion: Conversion, plans: list[ShardPlan], miniature: Miniature, tmp_path: Path
) -> None:
    clips = {clip.segment.ytid: clip for clip in miniature.clips}

    class HostileSource:
        """Serves a broken copy of every other clip."""

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
def test_audio_is_kept_if_asked_for(
    keep_audio: bool, conversion: Conversion, miniature: Miniature, plans: list[ShardPlan], tmp_path: Path
) -> None:
    source = FolderSource(str(miniature.media_folder), conversion.fetch)
    here = Conversion(Store(str(tmp_path)), source, conversion.fetch, keep_audio)
    convert_shard(plans[-1], here)
    written = [row for row in rows_of(here.store).values() if row["status"] == "written"]
    assert {row["audio_bytes"] > 0 for row in written} == {keep_audio}
