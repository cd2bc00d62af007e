import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.preprocess import COMMAND_LINE
from pipeline.measures.clip_measures import Measures
from pipeline.measures.table import MEASURES_SCHEMA, read_shard_measures, write_measures
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store


def test_compare_counts_swapped_and_louder_clips_and_shows_them(
    small_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ignored = shutil.ignore_patterns("empty", ".scratch", "runs", "mlflow.db*", "mlartifacts", "embeddings")
    shutil.copytree(small_store.path(""), tmp_path / "store", ignore=ignored)
    store = Store(str(tmp_path / "store"))
    snapshot = load_snapshot(store)
    shards = snapshot.index["shard"].to_pylist()
    shard = Shard.of(max(shards, key=shards.count))
    names = [name for name in MEASURES_SCHEMA.names if name != "key"]
    measured = read_shard_measures(store, shard, names)
    assert measured is not None
    rows = measured.to_pylist()
    keys = [row.pop("key") for row in rows]
    prints = [row["fingerprint"] for row in rows]
    rows[0]["fingerprint"], rows[1]["fingerprint"] = prints[1], prints[0]
    rows[2]["rms_db"] += 3
    write_measures(store, shard, keys, [Measures(**row) for row in rows])

    page, table = tmp_path / "page.html", tmp_path / "table.parquet"
    files = ["--output", str(page), "--table", str(table)]
    assert COMMAND_LINE.main(["compare", "--first", small_store.root, "--second", store.root, *files]) == 0
    printed = capsys.readouterr().out
    assert f"{len(snapshot.index)} clips in both, 0 only in" in printed
    assert re.search(rf"{len(snapshot.index) - 3}  identical", printed)
    kinds = {row["key"]: row["kinds"] for row in pq.read_table(table).to_pylist()}
    assert kinds[keys[2]] == "level"
    assert {kinds[key] for key in keys[:2]} <= {"different", "unclear"}
    assert len(kinds) == len(snapshot.index)
    html = page.read_text()
    assert keys[2] in html and "level +3.0 dB" in html and html.count("<audio") >= 2
    assert COMMAND_LINE.main(["compare", "--first", store.root, "--second", store.root, "--output", "x.txt"]) == 2
