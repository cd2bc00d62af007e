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
    """A copy of the small snapshot to which tests may add files."""
    shutil.copytree(Path(snapshot.store.root) / "snapshots", tmp_path / "snapshots")
    return replace(snapshot, store=Store(str(tmp_path)))


def test_pairs_are_stored_beside_an_unchanged_snapshot(own_snapshot: Snapshot) -> None:
    assert load_duplicates(own_snapshot) is None
    pairs = pa.table([["b", "a"], ["c", "d"], [0.1, 0.0], [0.5, -0.04]], PAIRS_SCHEMA)
    write_duplicates(own_snapshot, pairs, threshold=0.3)
    found = load_duplicates(own_snapshot)
    assert found is not None
    assert found.equals(pairs.take([1, 0]))
    assert found.schema.metadata[b"threshold"] == b"0.3"
    again = load_snapshot(own_snapshot.store, own_snapshot.snapshot_id)
    assert again.index.equals(own_snapshot.index)


def test_outdated_table_is_ignored_and_broken_table_is_reported(own_snapshot: Snapshot) -> None:
    name = f"snapshots/{own_snapshot.snapshot_id}/duplicates.parquet"
    own_snapshot.store.write_bytes(name, b"PAR1 no table")
    with pytest.raises(CorruptError, match=r"duplicates\.parquet is not a valid table of duplicates"):
        load_duplicates(own_snapshot)
    out = pa.BufferOutputStream()
    pq.write_table(PAIRS_SCHEMA.with_metadata({b"duplicates": b"0"}).empty_table(), out)
    own_snapshot.store.write_bytes(name, out.getvalue().to_pybytes())
    assert load_duplicates(own_snapshot) is None


def test_pairs_connect_clips_into_groups_directly_and_indirectly(snapshot: Snapshot) -> None:
    keys = snapshot.index["key"].to_pylist()
    pairs = pa.table([[keys[0], keys[3], "gone"], [keys[3], keys[5], keys[1]], [0.0] * 3, [0.0] * 3], PAIRS_SCHEMA)
    groups = duplicate_groups(snapshot, pairs)
    assert groups[0] == groups[3] == groups[5]
    assert len(set(groups)) == len(keys) - 2
