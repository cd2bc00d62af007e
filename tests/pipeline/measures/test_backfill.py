"""Measures of existing shards, compared with the measures from their conversion."""

import dataclasses
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorruptError, StoreError
from pipeline.measures.backfill import is_measured, measure_shard, shards_with_clips
from pipeline.measures.table import FROM_MEDIA, MEASURES_SCHEMA, VERSION_KEY, read_measures, read_shard_measures
from pipeline.shards.verify import remove_shard
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

COLUMNS = MEASURES_SCHEMA.names[1:]
FROM_CLIP = [name for name in COLUMNS if name not in FROM_MEDIA]


@pytest.fixture
def copied(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The small snapshot with a copy of its shards and measures that tests may change."""
    for folder in ("shards", "quality"):
        shutil.copytree(snapshot.store.path(folder), tmp_path / folder)
    return dataclasses.replace(snapshot, store=Store(str(tmp_path)))


def test_clips_of_a_store_without_measures_are_measured_from_its_shards(snapshot: Snapshot, copied: Snapshot) -> None:
    store = copied.store
    shutil.rmtree(store.path("quality"))
    shards = shards_with_clips(store)
    assert not any(is_measured(shard, store) for shard in shards)
    # The second pass skips the shards of the first.
    assert (
        sum(measure_shard(shard, store) for shard in [*shards[:2], *shards])
        == len(read_measures(copied, ["rms_db"])["rms_db"].drop_null())
        == len(snapshot.index)
    )
    assert [measure_shard(shard, store) for shard in shards] == [0] * len(shards)
    assert all(is_measured(shard, store) for shard in shards)
    expected, found = read_measures(snapshot, COLUMNS), read_measures(copied, COLUMNS)
    assert all(found[name].null_count == len(found) for name in FROM_MEDIA)
    for name in ("silence", "bandwidth_hz", "fingerprint"):
        assert found[name].equals(expected[name])
    for name in ("rms_db", "loudness_lufs"):  # measured from 16-bit FLAC
        assert found[name].to_pylist() == pytest.approx(expected[name].to_pylist(), abs=0.2)


def test_measures_of_the_media_survive_a_new_version(snapshot: Snapshot, copied: Snapshot) -> None:
    store = copied.store
    for shard in shards_with_clips(store):
        path = store.path(shard.measures)
        pq.write_table(pq.read_table(path).replace_schema_metadata({VERSION_KEY: b"0"}), path)
        assert not is_measured(shard, store)
        assert measure_shard(shard, store)
    expected, found = read_measures(snapshot, FROM_MEDIA), read_measures(copied, FROM_MEDIA)
    assert found.equals(expected)
    assert found["codec"].null_count == 0


def test_damaged_and_mismatched_tables_are_replaced(copied: Snapshot) -> None:
    store = copied.store
    first, second, third, *_ = shards_with_clips(store)
    store.write_bytes(first.measures, store.read_bytes(first.measures)[:-50])
    store.write_bytes(second.measures, store.read_bytes(third.measures))
    for shard in (first, second):
        assert not is_measured(shard, store)
        assert measure_shard(shard, store)
        assert is_measured(shard, store)


@pytest.mark.parametrize("share_left", [0.5, 0.0])
def test_damaged_shard_is_reported_by_name(copied: Snapshot, share_left: float) -> None:
    store = copied.store
    shard = shards_with_clips(store)[0]
    store.remove(shard.measures)
    content = store.read_bytes(shard.tar)
    store.write_bytes(shard.tar, content[: int(share_left * len(content))])
    with pytest.raises(CorruptError, match=rf"{shard.tar}: clip .* expected an .npy of"):
        measure_shard(shard, store)
    assert not store.exists(shard.measures)


def test_measures_are_removed_with_their_shard(copied: Snapshot) -> None:
    store = copied.store
    shard = shards_with_clips(store)[0]
    remove_shard(shard, store)
    assert not store.exists(shard.measures)
    assert read_measures(copied, ["silence"])["silence"].null_count > 0


@pytest.mark.slow
def test_stores_on_s3_and_disk_get_equal_measures(snapshot: Snapshot, s3_store: Store) -> None:
    shard = shards_with_clips(snapshot.store)[0]
    for name in (shard.tar, shard.sidecar):
        s3_store.write_bytes(name, snapshot.store.read_bytes(name))
    with pytest.raises(StoreError, match=r"can't read .*quality/"):
        read_shard_measures(s3_store, shard)
    assert measure_shard(shard, s3_store) > 0
    assert is_measured(shard, s3_store)
    expected, found = (read_shard_measures(store, shard, ["silence"]) for store in (snapshot.store, s3_store))
    assert expected and found and found.equals(expected)
    s3_store.write_bytes(shard.measures, s3_store.read_bytes(shard.measures)[:-50])
    with pytest.raises(CorruptError, match="not a valid table"):
        read_shard_measures(s3_store, shard)
