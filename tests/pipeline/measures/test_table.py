"""Tables of measures."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorruptError
from pipeline.measures.clip_measures import Measures
from pipeline.measures.table import MEASURES_SCHEMA, NUMERIC_AND_TEXT, VERSION_KEY, read_measures, write_measures
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store


@pytest.fixture
def elsewhere(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The small snapshot with a store that has no measures."""
    return dataclasses.replace(snapshot, store=Store(str(tmp_path)))


def clips_by_shard(snapshot: Snapshot) -> dict[Shard, list[str]]:
    clips: dict[Shard, list[str]] = {}
    for row in snapshot.index.select(["key", "shard"]).to_pylist():
        clips.setdefault(Shard.of(row["shard"]), []).append(row["key"])
    return clips


def test_measures_are_aligned_with_the_index(elsewhere: Snapshot) -> None:
    store, clips = elsewhere.store, clips_by_shard(elsewhere)
    unmeasured, outdated, *measured = clips
    for number, shard in enumerate([*measured, outdated]):
        keys = [*reversed(clips[shard]), "a clip that is in no snapshot"]
        write_measures(store, shard, keys, [Measures(rate_hz=hash(key) % 1000, codec=f"{number}") for key in keys])
    path = Path(store.path(outdated.measures))
    pq.write_table(pq.read_table(path).replace_schema_metadata({VERSION_KEY: b"0"}), path)
    table = read_measures(elsewhere, ["codec", "rate_hz"])
    assert table.schema == pa.schema([MEASURES_SCHEMA.field(name) for name in ("codec", "rate_hz")])
    shards = map(Shard.of, elsewhere.index["shard"].to_pylist())
    expected = [
        (None, None) if shard in (unmeasured, outdated) else (f"{measured.index(shard)}", hash(key) % 1000)
        for key, shard in zip(elsewhere.index["key"].to_pylist(), shards, strict=True)
    ]
    assert list(zip(table["codec"].to_pylist(), table["rate_hz"].to_pylist(), strict=True)) == expected


def test_clips_without_measures_are_null(elsewhere: Snapshot) -> None:
    table = read_measures(elsewhere)
    assert table.column_names == list(NUMERIC_AND_TEXT)
    assert len(table) == len(elsewhere.index)
    assert all(column.null_count == len(table) for column in table.columns)


def test_damaged_table_is_reported_with_its_remedy(elsewhere: Snapshot) -> None:
    shard = next(iter(clips_by_shard(elsewhere)))
    elsewhere.store.write_bytes(shard.measures, b"PAR1 and nothing else")
    with pytest.raises(CorruptError, match=rf"{shard.measures} is not a valid table .*preprocess.py measure"):
        read_measures(elsewhere)


def test_tables_without_later_columns_stay_readable(elsewhere: Snapshot) -> None:
    shard, keys = next(iter(clips_by_shard(elsewhere).items()))
    write_measures(elsewhere.store, shard, keys, [Measures(peak=0.5, mix_db=-3)] * len(keys))
    path = Path(elsewhere.store.path(shard.measures))
    pq.write_table(pq.read_table(path).drop_columns("mix_db"), path)
    table = read_measures(elsewhere, ["mix_db", "peak"])
    assert table["mix_db"].null_count == len(table)
    assert len(table) - table["peak"].null_count == len(keys)
