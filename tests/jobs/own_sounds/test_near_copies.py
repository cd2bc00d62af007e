"""Near-identical clips in different splits, found without Ray."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.own_sounds import near_copies
from jobs.own_sounds.near_copies import describe_near_copies, find_near_copies
from pipeline.quality.duplicates.pair_table import PAIRS_SCHEMA, load_duplicates
from pipeline.recordings.tables import LabelledClip
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store


@dataclass(frozen=True)
class KeyedClip(LabelledClip):
    """A clip of the small store, which has no files on disk to derive keys from."""

    stored_key: str = ""

    @property
    def key(self) -> str:
        return self.stored_key


def run_here(
    function: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any, num_items: int
) -> Iterator[tuple[Any, Any]]:
    for item in items:
        yield item, function(item, shared)


@pytest.fixture
def own(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """The small store's snapshot, in a store that keeps the pairs."""
    monkeypatch.setattr(near_copies, "run_on_this_node", run_here)
    for name in ("shards", "quality"):
        (tmp_path / name).symlink_to(snapshot.store.path(name))
    return dataclasses.replace(snapshot, store=Store(str(tmp_path)))


def test_near_copies_are_searched_once_and_named_across_splits(own: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = find_near_copies(own)
    monkeypatch.setattr(near_copies, "find_pairs", None)  # a second search would fail
    assert find_near_copies(own) == pairs == load_duplicates(own)
    first_of = {split: own.index["key"][int(own.rows_of((split,))[0])].as_py() for split in set(own.splits)}
    clips = [KeyedClip(Path(f"{split}.wav"), ("dog",), split, 1_500, 2_000, "", key) for split, key in first_of.items()]
    same = own.index["key"].take(own.rows_of(("eval",))[:2]).to_pylist()
    rows = [
        {"first": same[0], "second": same[1], "distance": 0.0, "offset_s": 0.0},
        {"first": first_of["balanced_train"], "second": first_of["eval"], "distance": 0.1, "offset_s": 0.0},
    ]
    table = pa.Table.from_pylist(rows, PAIRS_SCHEMA)
    (line,) = describe_near_copies(own, table, clips)
    assert "balanced_train.wav from 1.5 s (balanced_train) and eval.wav from 1.5 s (eval)" in line
    assert "3 clips have near-identical clips in other splits" in line
    assert describe_near_copies(own, table[:1], clips) == []
