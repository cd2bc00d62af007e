import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from webdataset.compat import WebDataset

from pipeline.config import PreprocessConfig
from pipeline.errors import CorruptError, InputError, MismatchError, NoClipsError, StoreError
from pipeline.labels import Labels
from pipeline.metadata import Metadata
from pipeline.miniature import Miniature
from pipeline.preprocess import preprocess
from pipeline.records import Reason, ShardReport
from pipeline.segments import segments_of
from pipeline.shards.checksum import Checksum
from pipeline.shards.format import SidecarRow, shard_fingerprint, write_sidecar
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint, load_snapshot
from pipeline.store.storage import Store

TRAIN_SPLITS = ("balanced_train", "unbalanced_train")


@pytest.fixture
def copy(snapshot: Snapshot, tmp_path: Path) -> Store:
    """A copy of the small store, which tests may change."""
    shutil.copytree(snapshot.store.root, tmp_path / "copy")
    return Store(str(tmp_path / "copy"))


def test_same_shards_give_the_same_snapshot_in_any_store(snapshot: Snapshot, copy: Store, metadata: Metadata) -> None:
    files = {file: file.stat().st_mtime_ns for file in Path(copy.root).rglob("*")}
    assert build_snapshot(copy, metadata, keep_audio=True).snapshot_id == snapshot.snapshot_id
    assert {file: file.stat().st_mtime_ns for file in Path(copy.root).rglob("*")} == files
    copy.remove("snapshots")
    copy.remove("latest.json")
    assert build_snapshot(copy, metadata, keep_audio=True).snapshot_id == snapshot.snapshot_id
    loaded = load_snapshot(copy)
    assert loaded == dataclasses.replace(snapshot, store=copy)


def test_snapshot_contains_exactly_the_written_clips(
    snapshot: Snapshot, miniature: Miniature, reports: list[ShardReport]
) -> None:
    written = [clip.segment for clip in miniature.clips if not (clip.fault and clip.fault.reason)]
    keys = [segment.key for segment in sorted(written, key=lambda segment: (segment.split, segment.key))]
    assert snapshot.index["key"].to_pylist() == keys
    expected = {segment.key: set(segment.labels) for segment in written}
    for key, indices in zip(keys, snapshot.index["labels"].to_pylist(), strict=True):
        assert {snapshot.labels.mids[index] for index in indices} == expected[key]
    split_counts = snapshot.manifest["split_counts"]
    assert sum(counts["planned"] for counts in split_counts.values()) == len(miniature.clips)
    assert sum(counts["written"] for counts in split_counts.values()) == len(keys)
    for split, counts in split_counts.items():
        failures = {
            reason: n for report in reports if report.shard.split == split for reason, n in report.failures.items()
        }
        assert counts["failed"].keys() == {str(reason) for reason in failures}
        assert counts["planned"] == counts["written"] + sum(counts["failed"].values())


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its tars open
def test_statistics_equal_numpys_over_all_training_fbanks(snapshot: Snapshot) -> None:
    tars = [
        snapshot.store.path(tar) for split in TRAIN_SPLITS for tar in snapshot.store.list(f"shards/{split}", ".tar")
    ]
    samples = WebDataset(tars, shardshuffle=False, empty_check=False)
    values = np.concatenate([np.load(io.BytesIO(sample["fbank.npy"])) for sample in samples]).astype(np.float64)
    assert snapshot.mean == pytest.approx(values.mean(), abs=1e-9)
    assert snapshot.std == pytest.approx(values.std(), abs=1e-9)


def test_targets_and_counts_match_the_label_lists(snapshot: Snapshot) -> None:
    rows = snapshot.rows_of(TRAIN_SPLITS)
    label_lists = snapshot.index["labels"].to_pylist()
    counts = np.bincount(np.concatenate([label_lists[row] for row in rows]), minlength=len(snapshot.labels))
    np.testing.assert_array_equal(snapshot.class_counts(TRAIN_SPLITS), counts)
    np.testing.assert_array_equal(
        snapshot.targets(rows).toarray(), snapshot.labels.multi_hot([label_lists[row] for row in rows])
    )


def test_split_without_clips_is_reported(snapshot: Snapshot) -> None:
    with pytest.raises(NoClipsError, match="no clips in mine; its splits are balanced_train, eval, unbalanced_train"):
        snapshot.rows_of(("mine",))


@pytest.mark.parametrize("file", ["index.parquet", "labels.csv", "stats.json", "shards.parquet"])
def test_edited_file_is_detected(snapshot: Snapshot, copy: Store, file: str) -> None:
    path = Path(copy.path(f"snapshots/{snapshot.snapshot_id}/{file}"))
    content = path.read_bytes()
    changes = {"labels.csv": (b"Siren", b"Sired"), "stats.json": (b'"fbank_std": ', b'"fbank_std": 1')}
    path.write_bytes(content.replace(*changes[file]) if file in changes else content + b" ")
    assert path.read_bytes() != content
    with pytest.raises(CorruptError, match=f"{snapshot.snapshot_id}.*edited"):
        load_snapshot(copy)


@pytest.mark.parametrize("name", ["index.parquet", "labels.csv", "manifest.json", "latest.json"])
@pytest.mark.parametrize("content", [b"", None], ids=["emptied", "removed"])
def test_next_preprocessing_repairs_a_damaged_snapshot(
    snapshot: Snapshot, copy: Store, miniature: Miniature, name: str, content: bytes | None
) -> None:
    config = PreprocessConfig(str(miniature.metadata_folder), (str(miniature.media_folder),), keep_audio=True, retry=())
    path = Path(copy.path(name if name == "latest.json" else f"snapshots/{snapshot.snapshot_id}/{name}"))
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises((StoreError, NoClipsError)):
        load_snapshot(copy)
    preprocess(config, copy)
    assert load_snapshot(copy) == dataclasses.replace(snapshot, store=copy)


def test_intact_snapshot_of_the_same_clips_is_not_rewritten(
    snapshot: Snapshot, copy: Store, metadata: Metadata
) -> None:
    name = f"snapshots/{snapshot.snapshot_id}/manifest.json"
    before = {**copy.read_json(name), "split_counts": {}}
    del before["digest"]  # as in manifests of earlier versions
    copy.write_json(name, before)
    assert build_snapshot(copy, metadata, keep_audio=True).snapshot_id == snapshot.snapshot_id
    assert copy.read_json(name) == before


def test_new_clips_give_a_new_snapshot_beside_the_old_one(snapshot: Snapshot, copy: Store, metadata: Metadata) -> None:
    sidecar = copy.list("shards/eval", ".parquet")[0]
    removed = copy.read_bytes(sidecar)
    copy.remove(sidecar)
    fewer = build_snapshot(copy, metadata, keep_audio=True)
    assert fewer.snapshot_id != snapshot.snapshot_id
    assert load_snapshot(copy).snapshot_id == fewer.snapshot_id
    assert load_snapshot(copy, snapshot.snapshot_id).index.equals(snapshot.index)
    copy.write_bytes(sidecar, removed)
    assert build_snapshot(copy, metadata, keep_audio=True).snapshot_id == snapshot.snapshot_id
    assert load_snapshot(copy).snapshot_id == snapshot.snapshot_id


def test_labels_that_are_not_classes_are_named(snapshot: Snapshot, copy: Store, metadata: Metadata) -> None:
    fewer = dataclasses.replace(metadata, labels=Labels(snapshot.labels.mids[1:], snapshot.labels.names[1:]))
    with pytest.raises(InputError, match=f"1 labels .* not among the 14 classes: {snapshot.labels.mids[0]}"):
        build_snapshot(copy, fewer, keep_audio=True)


def test_store_without_clips_is_rejected_with_the_reasons(tmp_path: Path, metadata: Metadata) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(NoClipsError, match="no segment was attempted"):
        build_snapshot(store, metadata, keep_audio=False)
    reasons = (Reason.NOT_FOUND, Reason.TIMED_OUT, Reason.NOT_FOUND)
    segments = segments_of(metadata.segments)
    rows = [
        SidecarRow(segment.key, **dataclasses.asdict(segment), status="failed", reason=reason)
        for reason, segment in zip(reasons, segments, strict=False)
    ]
    write_sidecar(store, "shards/eval/x.parquet", rows, shard_fingerprint(keep_audio=False), Checksum(0, ""))
    with pytest.raises(NoClipsError, match=r"3 segments failed \(2 not_found, 1 timed_out\)"):
        build_snapshot(store, metadata, keep_audio=False)
    with pytest.raises(NoClipsError, match="preprocess first"):
        load_snapshot(store)


def test_snapshot_with_other_fbank_settings_is_rejected(snapshot: Snapshot) -> None:
    check_fingerprint(snapshot)
    settings = {**snapshot.manifest["settings"], "fbank": {"num_mel_bins": 64}}
    other = dataclasses.replace(snapshot, manifest={**snapshot.manifest, "settings": settings})
    with pytest.raises(MismatchError, match=r"made with other settings \(fbank: expected .*found {'num_mel_bins': 64}"):
        check_fingerprint(other)
