"""The report of a snapshot: correct counts and a page that is safe to open."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ast_model.tracking.run import start_run
from ast_model.tracking.server import PREPROCESSING
from jobs.preprocess import COMMAND_LINE
from jobs.preprocessing.tracked import log_preprocessing
from pipeline.labels import Labels
from pipeline.measures.clip_measures import Measures
from pipeline.measures.table import write_measures
from pipeline.miniature import Miniature
from pipeline.preprocess import PreprocessReport
from pipeline.quality.duplicates.pair_table import PAIRS_SCHEMA, write_duplicates
from pipeline.quality.report import make_report
from pipeline.quality.selection import exclude_clips
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

HOSTILE = "\"><script>alert('1')</script>{{ 7 * 7 }}{0.__class__}"
TRAIN = ("balanced_train", "unbalanced_train")


@pytest.fixture
def copy(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """A copy of the small snapshot in another store, without measures."""
    for folder in ("shards", "snapshots"):
        shutil.copytree(Path(snapshot.store.root) / folder, tmp_path / "store" / folder)
    shutil.copy(Path(snapshot.store.root) / "latest.json", tmp_path / "store")
    return load_snapshot(Store(str(tmp_path / "store")))


@pytest.fixture
def measured(copy: Snapshot) -> Snapshot:
    """The copy with invented measures: every fourth clip is silent, every third a clipped MP3."""
    rows = copy.index.select(["key", "shard"]).to_pylist()
    for shard in {row["shard"] for row in rows}:
        places = [place for place, row in enumerate(rows) if row["shard"] == shard]
        measures = [
            Measures(silence=float(n % 4 == 0), clipping=0.05 * (n % 3 == 0), codec="mp3" if n % 3 == 0 else "opus")
            for n in places
        ]
        write_measures(copy.store, Shard.of(shard), [rows[n]["key"] for n in places], measures)
    return copy


def test_figures_count_the_clips_of_the_snapshot(measured: Snapshot) -> None:
    report, page = make_report(measured)
    figures, size = report["snapshot"], len(measured.index)
    assert (figures["num_clips"], figures["num_measured"]) == (size, size)
    for name, split in figures["splits"].items():
        rows = measured.rows_of((name,))
        assert split["planned"] == split["written"] + sum(split["failed"].values())
        assert split["clips"] == len(rows)
        assert figures["flaws"]["Silent"][name] == np.count_nonzero(rows % 4 == 0)
        assert figures["flaws"]["Clipped"][name] == np.count_nonzero(rows % 3 == 0)
    assert figures["num_flawed"] == sum(n % 4 == 0 or n % 3 == 0 for n in range(size))
    assert sum(figures["measures"]["silence"]["counts"]) == figures["measures"]["duration_s"]["num_known"] == size
    assert figures["measures"]["peak"]["num_known"] == 0 and "Peak" not in page
    assert figures["media"]["codec"] == {"opus": sum(n % 3 != 0 for n in range(size)), "mp3": -(-size // 3)}
    targets = measured.targets(np.arange(size)).toarray().astype(int)
    for c, row in enumerate(figures["classes"]):
        assert row["train"] + row["held_out"] == targets[:, c].sum()
    for pair in figures["pairs_of_classes"]:
        first, second = (measured.labels.names.index(pair[name]) for name in ("first", "second"))
        assert pair["clips"] == np.count_nonzero(targets[:, first] & targets[:, second])
    assert '--data.exclude "silence > 0.99"' in [each["do"] for each in report["advice"]]


def test_page_shows_and_plays_the_worst_clips_and_loads_nothing(measured: Snapshot) -> None:
    _, page = make_report(measured)
    assert "default-src 'none'" in page and "<script" not in page
    assert page.count('<img class="spectrogram"') == 8  # four silent clips and four clipped ones
    assert "data:audio/flac;base64,ZkxhQ" in page  # fLaC
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert len(page) < 5e6


def test_clip_of_a_missing_shard_is_listed_without_spectrogram(measured: Snapshot) -> None:
    for name in measured.store.list("shards", ".tar"):
        measured.store.remove(name)
    _, page = make_report(measured)
    assert "its shard can't be read" in page
    assert '<img class="spectrogram"' not in page


def test_report_without_measures_names_the_command_that_adds_them(copy: Snapshot) -> None:
    report, page = make_report(copy)
    assert report["snapshot"]["num_measured"] == 0
    assert f"python jobs/preprocess.py measure --root {copy.store.root}" in report["advice"][0]["do"]
    assert "preprocess.py measure" in page and "preprocess.py duplicates" in page
    json.dumps(report, allow_nan=False)


def test_hostile_names_are_escaped(measured: Snapshot) -> None:
    labels = Labels(measured.labels.mids, tuple(HOSTILE for _ in measured.labels.names))
    _, page = make_report(dataclasses.replace(measured, labels=labels))
    assert "<script" not in page and "&lt;script&gt;alert" in page and "{{ 7 * 7 }}{0.__class__}" in page


def test_clips_are_counted_by_the_month_of_their_shard(copy: Snapshot) -> None:
    names = copy.store.list("shards", ".parquet")
    for name in names:
        os.utime(copy.store.path(name), (1.6e9, 1.6e9 if name == names[0] else 1.7e9))
    months = make_report(copy)[0]["store"]["months"]
    assert list(months) == ["2020-09", "2023-11"]
    written = sum(split["written"] for split in copy.manifest["split_counts"].values())
    assert sum(counts.get("written", 0) for counts in months.values()) == written


def test_months_are_read_from_s3(s3_store: Store) -> None:
    s3_store.write_bytes("shards/eval/some.parquet", b"")
    (month,) = s3_store.months("shards", ".parquet").values()
    assert re.fullmatch(r"\d{4}-\d\d", month)


def test_duplicates_are_counted_and_listed_across_splits_first(measured: Snapshot) -> None:
    train, held_out = measured.rows_of(TRAIN), measured.rows_of(("eval",))
    keys = measured.index["key"].to_pylist()
    rows = [(train[0], train[1], 0.1), (train[2], held_out[0], 0.3)]
    pairs = [
        {"first": keys[min(a, b)], "second": keys[max(a, b)], "distance": distance, "offset_s": 0.0}
        for a, b, distance in rows
    ]
    write_duplicates(measured, pa.Table.from_pylist(pairs, PAIRS_SCHEMA), 0.5)
    report, page = make_report(measured)
    found = report["snapshot"]["duplicates"]
    assert (found["num_pairs"], found["num_duplicates"], found["num_of_eval"]) == (2, 1, 1)
    assert found["leaked"] == {"eval": 1}
    assert [row["distance"] for row in found["pairs"]] == pytest.approx([0.3, 0.1])
    assert "--data.exclude duplicate_of_eval" in page


def test_two_snapshots_are_compared_side_by_side(measured: Snapshot) -> None:
    selected = exclude_clips(measured, ["silence > 0.9"], TRAIN, "eval")
    report, page = make_report(selected, measured)
    assert report["against"]["num_clips"] > report["snapshot"]["num_clips"]
    assert selected.snapshot_id in page and measured.snapshot_id in page and "<polyline" in page


def test_command_writes_page_and_json(
    measured: Snapshot, miniature: Miniature, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(miniature.metadata_folder, tmp_path / "store" / "metadata")
    flags = ["report", "--root", measured.store.root, "--against", measured.snapshot_id]
    assert COMMAND_LINE.main([*flags, "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert "1. " in capsys.readouterr().out
    report = json.loads((tmp_path / "new" / "page.json").read_text())
    assert report["store"]["classes"] and "The least yield" in (tmp_path / "new" / "page.html").read_text()
    assert COMMAND_LINE.main([*flags, "--output", str(tmp_path / "page.json")]) == 2
    assert "--output FILE.html" in capsys.readouterr().err


@pytest.mark.parametrize(("num_planned", "files"), [(1, ["report/report.html", "report/report.json"]), (0, [])])
def test_run_with_new_shards_stores_its_report(
    copy: Snapshot, empty_database: Path, num_planned: int, files: list[str]
) -> None:
    shutil.copy(empty_database, copy.store.path("mlflow.db"))
    tracker = start_run(copy.store, "preprocess", {}, PREPROCESSING)
    log_preprocessing(tracker, copy, PreprocessReport(num_planned=num_planned))
    tracker.end("FINISHED")
    assert [file.path for file in tracker.client.list_artifacts(tracker.run_id, "report")] == files
