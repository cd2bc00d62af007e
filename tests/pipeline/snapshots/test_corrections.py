"""Corrections of the metadata after clips were fetched."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.labels import Labels
from pipeline.metadata import Metadata
from pipeline.records import Segment
from pipeline.segments import segments_of, table_of
from pipeline.shards.format import digest_of, shard_fingerprint
from pipeline.shards.ledger import plan_shards, read_sidecar_table
from pipeline.shards.verify import verify_shard
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.history import Changes, count_changes, diff_snapshots
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

Edit = Callable[[list[Segment]], list[Segment]]


@pytest.fixture
def store(snapshot: Snapshot, tmp_path: Path) -> Store:
    """A copy of the small store, which tests may change."""
    shutil.copytree(snapshot.store.root, tmp_path / "copy")
    return Store(str(tmp_path / "copy"))


@pytest.fixture
def segments(snapshot: Snapshot, metadata: Metadata) -> list[Segment]:
    """The segments of the clips in the small store."""
    written = set(snapshot.index["key"].to_pylist())
    return [segment for segment in segments_of(metadata.segments) if segment.key in written]


def make_metadata(segments: list[Segment], labels: Labels) -> Metadata:
    return Metadata(labels, table_of(segments), digest_of([repr(segment) for segment in segments]))


def check_says(snapshot: Snapshot, segments: list[Segment]) -> None:
    """Check that a snapshot contains exactly these segments, with their splits and labels."""
    expected = {segment.key: (segment.split, set(segment.labels)) for segment in segments}
    columns = (snapshot.index[name].to_pylist() for name in ("key", "split", "labels"))
    found = {
        key: (split, {snapshot.labels.mids[index] for index in indices})
        for key, split, indices in zip(*columns, strict=True)
    }
    assert found == expected


def num_due(store: Store, metadata: Metadata) -> int:
    sidecar_table = read_sidecar_table(store, shard_fingerprint(keep_audio=True))
    return plan_shards(metadata.segments, sidecar_table, clips_per_shard=7, retry=()).num_segments


def test_corrected_labels_splits_and_rows_apply_without_a_fetch(
    snapshot: Snapshot, store: Store, segments: list[Segment]
) -> None:
    relabelled, moved, gone = segments[0], segments[1], segments[2]
    other = next(mid for mid in snapshot.labels.mids if mid not in relabelled.labels)
    corrected = [
        replace(relabelled, labels=tuple(sorted({*relabelled.labels, other}))),
        replace(moved, split="eval"),
        *segments[3:],
    ]
    now = make_metadata(corrected, snapshot.labels)
    assert num_due(store, now) == 0
    new = build_snapshot(store, now, keep_audio=True)
    check_says(new, corrected)
    assert load_snapshot(store).snapshot_id == new.snapshot_id
    assert load_snapshot(store, snapshot.snapshot_id).index.equals(snapshot.index)
    changes = count_changes(snapshot, new)
    assert changes == Changes(num_removed=1, num_relabelled=1, num_moved=1)
    assert str(changes) == "1 relabelled, 1 moved to another split, 1 removed"
    assert count_changes(new, snapshot) == Changes(num_added=1, num_relabelled=1, num_moved=1)
    # By class, the clip moved goes from one split and comes to the other.
    table = diff_snapshots(snapshot, new)
    assert table.loc[table["split"] == "eval", "came"].sum() == len(moved.labels)
    assert table["went"].sum() == len(moved.labels) + len(gone.labels)
    # Training weights and statistics follow: nothing of the moved clip is left in training.
    assert new.class_counts((moved.split,)).sum() == sum(
        len(segment.labels) for segment in corrected if segment.split == moved.split
    )
    # In the shards the old labels stay, and agree with their sidecars.
    for name in store.list("shards", ".parquet"):
        assert verify_shard(Shard.of(name), store) == []


def test_changed_end_is_a_new_clip_and_the_old_end_is_found_again(
    snapshot: Snapshot, store: Store, segments: list[Segment]
) -> None:
    shorter = replace(segments[0], end_ms=segments[0].start_ms + 5000)
    now = make_metadata([shorter, *segments[1:]], snapshot.labels)
    assert num_due(store, now) == 1
    without = build_snapshot(store, now, keep_audio=True)
    check_says(without, segments[1:])
    assert count_changes(snapshot, without) == Changes(num_removed=1)
    before = make_metadata(segments, snapshot.labels)
    assert num_due(store, before) == 0
    assert build_snapshot(store, before, keep_audio=True).snapshot_id == snapshot.snapshot_id


def test_unused_class_may_be_removed_from_the_class_list(
    snapshot: Snapshot, store: Store, segments: list[Segment]
) -> None:
    gone = snapshot.labels.mids[0]
    fewer = Labels(snapshot.labels.mids[1:], snapshot.labels.names[1:])
    corrected = [
        replace(segment, labels=left)
        for segment in segments
        if (left := tuple(mid for mid in segment.labels if mid != gone))
    ]
    new = build_snapshot(store, make_metadata(corrected, fewer), keep_audio=True)
    check_says(new, corrected)
    num_relabelled = sum(gone in segment.labels and len(segment.labels) > 1 for segment in segments)
    assert count_changes(snapshot, new) == Changes(
        num_removed=len(segments) - len(corrected), num_relabelled=num_relabelled
    )


def test_reordered_classes_do_not_count_as_changed_labels(
    snapshot: Snapshot, store: Store, segments: list[Segment]
) -> None:
    turned = Labels(snapshot.labels.mids[::-1], snapshot.labels.names[::-1])
    new = build_snapshot(store, make_metadata(segments, turned), keep_audio=True)
    check_says(new, segments)
    assert not count_changes(snapshot, new)
