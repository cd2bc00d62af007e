import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import CorruptError
from pipeline.quality.duplicates.pair_table import (
    PAIRS_SCHEMA,
    duplicate_groups,
    load_duplicates,
    write_duplicates,
)
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store


@pytest.fixture
def own_snapshot(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The small store's snapshot, to be added to."""
    shutil.copytree(Path(snapshot.store.root) / "snapshots", tmp_path / "snapshots")
    return replace(snapshot, store=Store(str(tmp_path)))


def test_pairs_are_kept_beside_the_snapshot_and_change_nothing_of_it(own_snapshot: Snapshot) -> None:
    assert load_duplicates(own_snapshot) is None
    pairs = pa.table([["b", "a"], ["c", "d"], [0.1, 0.0], [0.5, -0.04]], PAIRS_SCHEMA)
    write_duplicates(own_snapshot, pairs, threshold=0.3)
    found = load_duplicates(own_snapshot)
    assert found is not None
    assert found.equals(pairs.take([1, 0]))
    assert found.schema.metadata[b"threshold"] == b"0.3"
    again = load_snapshot(own_snapshot.store, own_snapshot.snapshot_id)
    assert again.index.equals(own_snapshot.index)


def test_a_table_of_another_version_counts_as_not_there_and_a_broken_one_is_named(own_snapshot: Snapshot) -> None:
    name = f"snapshots/{own_snapshot.snapshot_id}/duplicates.parquet"
    own_snapshot.store.write_bytes(name, b"PAR1 no table")
    with pytest.raises(CorruptError, match=r"duplicates\.parquet is not a valid table of duplicates"):
        load_duplicates(own_snapshot)
    out = pa.BufferOutputStream()
    pq.write_table(PAIRS_SCHEMA.with_metadata({b"duplicates": b"0"}).empty_table(), out)
    own_snapshot.store.write_bytes(name, out.getvalue().to_pybytes())
    assert load_duplicates(own_snapshot) is None


def test_pairs_join_clips_into_groups_also_through_others(snapshot: Snapshot) -> None:
    keys = snapshot.index["key"].to_pylist()
    pairs = pa.table([[keys[0], keys[3], "gone"], [keys[3], keys[5], keys[1]], [0.0] * 3, [0.0] * 3], PAIRS_SCHEMA)
    groups = duplicate_groups(snapshot, pairs)
    assert groups[0] == groups[3] == groups[5]
    assert len(set(groups)) == len(keys) - 2
