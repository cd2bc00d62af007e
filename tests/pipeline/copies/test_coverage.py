from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.config import conf

from pipeline.copies.containers import Copy, list_copy
from pipeline.copies.coverage import Coverage, describe_coverage, estimate_coverage, find_due_containers
from pipeline.copies.listings import write_listing
from pipeline.copies.run import check_heads
from pipeline.copies.segment_index import SegmentIndex
from pipeline.errors import InputError
from pipeline.segments import SEGMENT_SCHEMA
from pipeline.store.storage import Store
from tests.hub import run_hub
from tests.pipeline.copies.layouts import LAYOUTS, Clips, write_tar

SPLITS = ("eval", "train")


def index_of(ids: list[str], num_due: int) -> SegmentIndex:
    """Index segments at 30 s. Splits take turns, and the first `num_due` are due."""
    rows = [
        {"key": f"{ytid}_30000", "start_ms": 30_000, "end_ms": 40_000, "labels": "/m/1", "split": SPLITS[number % 2]}
        for number, ytid in enumerate(ids)
    ]
    table = pa.Table.from_pylist(rows, SEGMENT_SCHEMA)
    return SegmentIndex(table, np.arange(len(ids)) < num_due, np.zeros(len(ids), np.int32))


def ids_of(num: int) -> list[str]:
    return [f"-{number:05d}_aB-c" for number in range(num)]


def coverage_of(copy: Copy, index: SegmentIndex, store: Store) -> Coverage:
    return estimate_coverage(find_due_containers(copy.containers, index, store), index)


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_coverage_of_small_containers_is_exact(
    tmp_path: Path, write: Callable[[Path, Clips], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(30)
    write(tmp_path / "copy", {ytid: bytes([number]) * 1000 for number, ytid in enumerate([*ids[:20], "other-00000"])})
    store, index = Store(str(tmp_path / "store")), index_of(ids, num_due=5)
    with run_hub(tmp_path / "copy") as hub:
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.address})
        for media in (str(tmp_path / "copy"), "hf://datasets/owner/copy"):
            coverage = coverage_of(list_copy(media), index, store)
            assert coverage.clips == Counter(eval=10, train=10)
            assert (coverage.num_due, coverage.num_members) == (5, 21)
            assert (coverage.matches.num_matched, coverage.matches.num_unmatched) == (20, 1)


def test_coverage_of_many_containers_is_estimated_from_a_few_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tars of one split and parquet files of two, with half of the clips each."""
    ids, rng = ids_of(4000), np.random.default_rng(0)
    media = rng.bytes(2000)
    store, index = Store(str(tmp_path / "store")), index_of(ids, num_due=4000)
    for number, chunk in enumerate(np.array_split(ids[:2000:2], 10)):
        write_tar(tmp_path / f"copy/eval{number:02d}.tar", {f"{ytid}.flac": media for ytid in chunk})
    for number, chunk in enumerate(np.array_split(ids[2000:], 10)):
        table = pa.table({"video_id": chunk, "audio": [media * 2] * len(chunk)})
        pq.write_table(table, tmp_path / f"copy/{number:02d}.parquet", compression="none", row_group_size=50)
    with run_hub(tmp_path / "copy") as hub:
        monkeypatch.setitem(conf, "hf", {"endpoint": hub.address})
        copy = list_copy("hf://datasets/owner/copy")
        coverage = coverage_of(copy, index, store)
        assert hub.requests["resolve"] <= 4 * 16
    assert coverage.clips["eval"] == pytest.approx(2000, rel=0.05)
    assert coverage.clips["train"] == pytest.approx(1000, rel=0.05)

    write_listing(store, copy.containers[-1], index.search, [f"{ytid}_30000" for ytid in ids[:100]])
    due = find_due_containers(copy.containers, index, store)
    assert len(due.containers) == 20 and len(due.unread) == 19 and sorted(due.listed_rows) == list(range(100))
    lines = describe_coverage(copy, due, coverage, index)
    assert f"of 2,000 eval, {coverage.clips['train']:,} of 2,000 train segments" in lines[1]
    assert lines[2].startswith("reads 20 of 20 containers (0.0 GB) with about ")


def test_misread_names_are_reported_before_anything_is_read(tmp_path: Path) -> None:
    ids = ids_of(40)
    write_tar(tmp_path / "copy/a.tar", {f"take-{ytid}.x.flac": b"media" for ytid in ids})
    copy, store = list_copy(str(tmp_path / "copy")), Store(str(tmp_path / "store"))
    index = index_of(ids, num_due=40)
    with pytest.raises(InputError, match=r"0 of 32 members .*take--00000_aB-c\.x.*-00000_aB-c_30000.*--id-pattern"):
        check_heads(coverage_of(copy, index, store), index)
    few = index_of(ids[-3:], num_due=3)
    check_heads(coverage_of(copy, few, store), few)


def test_unreadable_head_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = ids_of(20)
    write_tar(tmp_path / "copy/a.tar", {f"{ytid}.flac": b"media" for ytid in ids})
    (tmp_path / "copy/b.zip").write_bytes(b"<html>")
    index = index_of(ids, num_due=20)
    coverage = coverage_of(list_copy(str(tmp_path / "copy")), index, Store(str(tmp_path / "store")))
    assert coverage.clips.total() == 20
    assert "can't read the start of" in caplog.text and "b.zip" in caplog.text
