"""Selections: training clips excluded by their measures."""

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, CorruptError, InputError, NoClipsError
from pipeline.measures.clip_measures import Measures
from pipeline.measures.table import write_measures
from pipeline.quality.duplicates.pair_table import PAIRS_SCHEMA, write_duplicates
from pipeline.quality.selection import count_leaks, exclude_clips, parse_expression
from pipeline.snapshots.history import prune_snapshots, runs_by_snapshot
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

TRAIN = ("balanced_train", "unbalanced_train")


@pytest.fixture
def measured(snapshot: Snapshot, tmp_path: Path) -> Snapshot:
    """The small snapshot with invented measures: every fourth clip is silent, every third an MP3; no bandwidth."""
    shutil.copytree(Path(snapshot.store.root) / "snapshots", tmp_path / "snapshots")
    store = Store(str(tmp_path))
    rows = snapshot.index.select(["key", "shard"]).to_pylist()
    for shard in {row["shard"] for row in rows}:
        places = [place for place, row in enumerate(rows) if row["shard"] == shard]
        measures = [
            Measures(silence=float(place % 4 == 0), codec="mp3" if place % 3 == 0 else "opus", bit_rate=1000 * place)
            for place in places
        ]
        write_measures(store, Shard.of(shard), [rows[place]["key"] for place in places], measures)
    return dataclasses.replace(snapshot, store=store)


def rows_left_out(snapshot: Snapshot, expressions: Sequence[str]) -> list[int]:
    kept = exclude_clips(snapshot, expressions, TRAIN, "eval").index["key"].to_pylist()
    return [row for row, key in enumerate(snapshot.index["key"].to_pylist()) if key not in kept]


@pytest.mark.parametrize(
    ("expressions", "is_out"),
    [
        (["silence > 0.9"], lambda row: row % 4 == 0),
        (["codec == mp3 and bit_rate < 9000"], lambda row: row % 3 == 0 and row < 9),
        (["silence>=1", "codec != 'opus'"], lambda row: row % 4 == 0 or row % 3 == 0),
        (["duration_s > 100"], lambda row: False),
    ],
)
def test_matching_training_clips_are_excluded(measured: Snapshot, expressions: list[str], is_out) -> None:
    trained = np.flatnonzero(np.isin(measured.splits, TRAIN))
    assert rows_left_out(measured, expressions) == [row for row in trained.tolist() if is_out(row)]


def test_selection_is_a_snapshot_with_its_own_name(measured: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    selected = exclude_clips(measured, ["silence > 0.9"], TRAIN, "eval")
    assert "by silence > 0.9" in caplog.text
    again = load_snapshot(measured.store, selected.snapshot_id)
    assert again.index.equals(selected.index)
    assert (again.stats, again.manifest, again.whole_id) == (selected.stats, selected.manifest, measured.snapshot_id)
    assert again.manifest["selection"]["exclude"] == ["silence > 0.9"]
    counts = np.asarray(again.targets(again.rows_of(TRAIN)).sum(axis=0)).ravel()
    np.testing.assert_array_equal(again.class_counts(TRAIN), counts)
    assert sum(again.stats["num_clips"][split] for split in TRAIN) == len(again.rows_of(TRAIN))
    assert exclude_clips(measured, ["silence > 0.9"], TRAIN, "eval").snapshot_id == selected.snapshot_id
    assert exclude_clips(measured, ["silence > 0.8"], TRAIN, "eval").snapshot_id != selected.snapshot_id


def test_selection_of_a_selection_excludes_the_clips_of_both(measured: Snapshot) -> None:
    loud = exclude_clips(measured, ["silence > 0.9"], TRAIN, "eval")
    fewer = exclude_clips(loud, ["codec == mp3"], TRAIN, "eval")
    both = exclude_clips(measured, ["silence > 0.9", "codec == mp3"], TRAIN, "eval")
    assert fewer.index.equals(both.index)
    again = load_snapshot(measured.store, fewer.snapshot_id)
    assert again.index.equals(fewer.index)
    assert again.manifest["selection"]["among"] == loud.snapshot_id


def test_run_on_a_selection_keeps_its_snapshot(measured: Snapshot) -> None:
    selected = exclude_clips(measured, ["silence > 0.9"], TRAIN, "eval")
    measured.store.write_json("runs/some/run.json", {"snapshot": selected.snapshot_id})
    assert runs_by_snapshot(measured.store) == {measured.snapshot_id: {"some"}}
    assert prune_snapshots(measured.store, (), (), dry_run=True) == []


def test_edited_or_missing_selection_is_reported_by_name(measured: Snapshot) -> None:
    name = exclude_clips(measured, ["silence > 0.9"], TRAIN, "eval").snapshot_id
    other = exclude_clips(measured, ["codec == mp3"], TRAIN, "eval").snapshot_id
    folder = Path(measured.store.root) / f"snapshots/{measured.snapshot_id}/selections"
    shutil.copy(folder / f"{other.split('-')[1]}.parquet", folder / f"{name.split('-')[1]}.parquet")
    with pytest.raises(CorruptError, match="edited"):
        load_snapshot(measured.store, name)
    with pytest.raises(NoClipsError, match=r"the selection gone .* pass --data\.exclude again"):
        load_snapshot(measured.store, f"{measured.snapshot_id}-gone")


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("silense > 0.9", "did you mean silence"),
        ("colour", "there are peak, rms_db"),
        ("silence", "a comparison and a number"),
        ("silence > loud", "a comparison and a number"),
        ("silence > nan", "a comparison and a number"),
        ("silence >> 1", "expected conditions such as"),
        ("", "expected conditions such as"),
        ("codec > mp3", "is text and takes =="),
        ("duplicate == 1", "takes no comparison"),
        ("__import__('os')", "expected conditions such as"),
    ],
)
def test_malformed_expression_is_explained(expression: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_expression(expression)


def test_column_without_measures_names_the_command_that_adds_it(measured: Snapshot) -> None:
    with pytest.raises(InputError, match=r"has the measure bandwidth_hz.*preprocess\.py measure"):
        exclude_clips(measured, ["bandwidth_hz < 4500"], TRAIN, "eval")
    with pytest.raises(InputError, match=r"preprocess\.py duplicates"):
        exclude_clips(measured, ["duplicate"], TRAIN, "eval")


def test_empty_selection_is_refused_with_counts(measured: Snapshot) -> None:
    with pytest.raises(NoClipsError, match=r"leaves none of the \d+ clips of .*: \d+ by silence >= 0;"):
        exclude_clips(measured, ["silence >= 0"], TRAIN, "eval")


def test_duplicates_are_excluded_and_leaks_counted(measured: Snapshot) -> None:
    keys, trained = measured.index["key"].to_pylist(), measured.rows_of(TRAIN).tolist()
    evaluated = measured.rows_of(("eval",)).tolist()
    assert count_leaks(measured, TRAIN, "eval") == 0
    pairs = [(keys[trained[0]], keys[trained[2]]), (keys[trained[1]], keys[evaluated[0]])]
    first, second = zip(*pairs, strict=True)
    write_duplicates(measured, pa.table([first, second, [0.0] * 2, [0.0] * 2], PAIRS_SCHEMA), threshold=0.3)
    assert rows_left_out(measured, ["duplicate"]) == [trained[2]]
    assert rows_left_out(measured, ["duplicate_of_eval"]) == [trained[1]]
    assert count_leaks(measured, TRAIN, "eval") == 1
    assert count_leaks(exclude_clips(measured, ["duplicate_of_eval"], TRAIN, "eval"), TRAIN, "eval") == 0
    assert count_leaks(measured, (*TRAIN, "eval"), "eval") == len(evaluated)


def test_one_clip_of_each_group_stays_unless_another_expression_excludes_it(measured: Snapshot) -> None:
    keys, trained = measured.index["key"].to_pylist(), measured.rows_of(TRAIN).tolist()
    silent, other = next(row for row in trained if row % 4 == 0), next(row for row in reversed(trained) if row % 4)
    write_duplicates(measured, pa.table([[keys[silent]], [keys[other]], [0.0], [0.0]], PAIRS_SCHEMA), 0.3)
    assert rows_left_out(measured, ["duplicate"]) == [other]
    for expressions in (["duplicate", "silence > 0.9"], ["silence > 0.9", "duplicate"]):
        assert rows_left_out(measured, expressions) == [row for row in trained if row % 4 == 0]


def test_leaks_are_counted_through_excluded_clips(measured: Snapshot) -> None:
    keys, trained = measured.index["key"].to_pylist(), measured.rows_of(TRAIN).tolist()
    silent, other = next(row for row in trained if row % 4 == 0), next(row for row in trained if row % 4)
    doubles = [keys[other], keys[measured.rows_of(("eval",))[0]]]
    write_duplicates(measured, pa.table([[keys[silent]] * 2, doubles, [0.0] * 2, [0.0] * 2], PAIRS_SCHEMA), 0.3)
    selected = exclude_clips(measured, ["silence > 0.9"], TRAIN, "eval")
    assert count_leaks(selected, TRAIN, "eval") == 1
    assert keys[other] not in exclude_clips(selected, ["duplicate_of_eval"], TRAIN, "eval").index["key"].to_pylist()
