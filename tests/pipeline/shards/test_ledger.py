import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import MismatchError
from pipeline.records import FailureCategory, Reason, Segment, ShardPlan
from pipeline.segments import table_of
from pipeline.shards.checksum import Checksum
from pipeline.shards.format import FAILED, SIDECAR_SCHEMA, WRITTEN, SidecarRow, write_sidecar
from pipeline.shards.ledger import plan_shards, read_sidecar_table
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

FINGERPRINT = "print"
SEGMENTS = [
    Segment(f"{split[0]}{number:010d}", 0, 10_000, ("/m/1",), split)
    for split, count in (("train", 10), ("eval", 4))
    for number in range(count)
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def plan(store: Store, **options) -> list[ShardPlan]:
    return list(plan_shards(table_of(SEGMENTS), read_sidecar_table(store, FINGERPRINT), 3, **options))


def attempt(store: Store, plan: ShardPlan, failures: dict[str, Reason] | None = None) -> None:
    """Write the sidecar of a shard. failures: failed clips by id; all other clips are written."""
    rows = []
    for segment, attempts in zip(plan.segments, plan.attempts, strict=True):
        reason = (failures or {}).get(segment.ytid)
        fields = {name: getattr(segment, name) for name in ("key", "ytid", "start_ms", "end_ms", "split", "labels")}
        status = FAILED if reason else WRITTEN
        rows.append(SidecarRow(**fields, status=status, reason=reason or "", attempts=attempts + 1))
    write_sidecar(store, plan.shard.sidecar, rows, FINGERPRINT, Checksum(0, ""))


def read_rows(store: Store) -> pd.DataFrame:
    return read_sidecar_table(store, FINGERPRINT, SIDECAR_SCHEMA.names).to_pandas()


def ids(plans: list[ShardPlan]) -> list[str]:
    return [plan.shard.shard_id for plan in plans]


def segments_of(plans: list[ShardPlan]) -> list[Segment]:
    return [segment for plan in plans for segment in plan.segments]


def test_new_segments_are_planned_once_in_order(store: Store) -> None:
    plans = plan(store)
    assert segments_of(plans) == SEGMENTS
    assert [(plan.shard.split, len(plan.segments)) for plan in plans] == [
        ("train", 3),
        ("train", 3),
        ("train", 3),
        ("train", 1),
        ("eval", 3),
        ("eval", 1),
    ]
    assert {attempts for plan in plans for attempts in plan.attempts} == {0}
    assert len(set(ids(plans))) == 6
    assert plan(store) == plans


def test_interrupted_run_resumes_with_its_remaining_shards(store: Store) -> None:
    plans = plan(store)
    for done in (plans[1], plans[4]):
        attempt(store, done)
    assert plan(store) == [plans[0], plans[2], plans[3], plans[5]]


def test_nothing_is_due_once_all_clips_are_written(store: Store) -> None:
    for each in plan(store):
        attempt(store, each)
    assert plan(store) == []


@pytest.mark.parametrize("reason", Reason)
def test_only_retryable_failures_are_due_again(store: Store, reason: Reason) -> None:
    plans = plan(store)
    attempt(store, plans[0], {plans[0].segments[1].ytid: reason})
    again = [plan for plan in plan(store) if plan.attempts != (0,) * len(plan.segments)]
    if reason.category in (FailureCategory.THROTTLED, FailureCategory.TRANSIENT):
        assert [(plan.segments, plan.attempts) for plan in again] == [(plans[0].segments[1:2], (1,))]
    else:
        assert again == []
    assert plans[0].segments[1] in segments_of(plan(store, retry=[reason.category]))


def test_retries_do_not_change_the_shards_of_new_segments(store: Store) -> None:
    plans = plan(store)
    attempt(store, plans[0], {plans[0].segments[0].ytid: Reason.TIMED_OUT})
    attempt(store, plans[2], {plans[2].segments[2].ytid: Reason.SERVER_ERROR})
    found = plan(store)
    assert found[:2] == [plans[1], plans[3]]
    assert (found[2].segments, found[2].attempts) == ((plans[0].segments[0], plans[2].segments[2]), (1, 1))
    assert found[3:] == plans[4:]


def test_each_retry_of_the_same_clips_is_a_new_shard(store: Store) -> None:
    # The clip fails over and over; its shards must not be taken for one that is there.
    seen: set[str] = set()
    for _ in range(4):
        due = next(each for each in plan(store) if SEGMENTS[0] in each.segments)
        assert due.shard.shard_id not in seen
        seen.add(due.shard.shard_id)
        attempt(store, due, {SEGMENTS[0].ytid: Reason.TIMED_OUT})
    rows = read_rows(store).set_index("key")
    assert rows.loc[SEGMENTS[0].key, "attempts"] == 4


def test_last_attempt_counts_unless_an_earlier_attempt_wrote_the_clip(store: Store) -> None:
    first = ShardPlan(Shard("train", "f"), tuple(SEGMENTS[:2]), (0, 0))
    later = ShardPlan(Shard("train", "a"), tuple(SEGMENTS[:2]), (1, 1))
    attempt(store, first, {SEGMENTS[0].ytid: Reason.TIMED_OUT})
    attempt(store, later, {SEGMENTS[0].ytid: Reason.REMOVED, SEGMENTS[1].ytid: Reason.REMOVED})
    rows = read_rows(store).set_index("key")
    lost, kept = rows.loc[SEGMENTS[0].key], rows.loc[SEGMENTS[1].key]
    assert (lost["status"], lost["reason"], lost["shard"]) == (FAILED, "removed", "shards/train/a.tar")
    assert (kept["status"], kept["shard"]) == (WRITTEN, "shards/train/f.tar")
    assert len(rows) == 2


def test_empty_store_has_an_empty_table(store: Store) -> None:
    rows = read_rows(store)
    assert len(rows) == 0
    assert set(rows) == {field.name for field in dataclasses.fields(SidecarRow)} | {"shard", "lacking_source"}


def test_shards_with_other_settings_are_rejected(store: Store) -> None:
    attempt(store, plan(store)[0])
    with pytest.raises(
        MismatchError, match=r"train/\w+.parquet to have the settings .*fingerprint other\), found print"
    ):
        read_sidecar_table(store, "other")


def test_transient_failures_have_limited_retries_rarest_class_first(store: Store) -> None:
    classes = {0: ("/m/common",), 1: ("/m/common", "/m/rare"), 2: ("/m/common",), 3: ("/m/common", "/m/rarest")}
    labels = [classes.get(number, ("/m/rare",) if number == 4 else ("/m/common",)) for number in range(6)]
    segments = [Segment(f"{number:011d}", 0, 10_000, labels[number], "eval") for number in range(6)]
    (first,) = plan_shards(table_of(segments), read_sidecar_table(store, FINGERPRINT), 6)
    attempts = (0, 0, 8, 0, 0, 9)
    failures = {segment.ytid: Reason.TIMED_OUT for segment in segments} | {segments[5].ytid: Reason.RATE_LIMITED}
    attempt(store, dataclasses.replace(first, attempts=attempts), failures)
    (again,) = plan_shards(table_of(segments), read_sidecar_table(store, FINGERPRINT), 6, max_attempts=9)
    assert [int(segment.ytid) for segment in again.segments] == [3, 1, 4, 0, 5]
    assert again.attempts == (1, 1, 1, 1, 10)


def test_segment_with_a_corrected_end_is_due_again(store: Store) -> None:
    for each in plan(store):
        attempt(store, each)
    shorter = dataclasses.replace(SEGMENTS[0], end_ms=5000)
    segments = table_of([shorter, *SEGMENTS[1:]])
    (due,) = plan_shards(segments, read_sidecar_table(store, FINGERPRINT), 3)
    assert (due.segments, due.attempts) == ((shorter,), (0,))
    attempt(store, due)
    assert len(read_rows(store)) == len(SEGMENTS) + 1
    assert len(plan_shards(segments, read_sidecar_table(store, FINGERPRINT), 3)) == 0
    assert plan(store) == []


def test_missing_clip_is_due_again_once_the_sources_change(store: Store) -> None:
    (first, *_) = plan(store)
    rows = [
        SidecarRow(
            **{name: getattr(segment, name) for name in ("key", "ytid", "start_ms", "end_ms", "split", "labels")},
            status=FAILED,
            reason=Reason.MISSING_IN_SOURCE,
            source="old sources",
            attempts=1,
        )
        for segment in first.segments
    ]
    write_sidecar(store, first.shard.sidecar, rows, FINGERPRINT, Checksum(0, ""))
    missing = {segment.key for segment in first.segments}
    assert missing.isdisjoint(segment.key for segment in segments_of(plan(store, sources_digest="old sources")))
    assert missing <= {segment.key for segment in segments_of(plan(store, sources_digest="new sources"))}
