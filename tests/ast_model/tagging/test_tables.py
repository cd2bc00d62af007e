"""Read files for review back with crowsetta, a library for annotation formats, and with pandas."""

import codecs
import csv
from pathlib import Path

import crowsetta
import pandas as pd
import pytest

from ast_model.tagging.tables import render_tags, write_tags
from pipeline.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # of crowsetta

ROWS = [
    ("a/dawn.wav", 0.0, 10.24, "Bird vocalization, bird call, bird song", 0.9141),
    ("a/dawn.wav", 5.12, 15.36, "Wind", 0.25),
    ("b/dawn.wav", 0.0, 3.0, 'Says "hi"\tthen\nleaves', 0.5),
    ("=cmd.flac", 0.0, 1.0, "Глухой стук", 1.0),
]


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=pd.Index(["file", "start_s", "end_s", "label", "score"]))


def test_raven_selection_tables_are_read_by_crowsetta(table: pd.DataFrame, tmp_path: Path) -> None:
    files = write_tags(table, "raven", tmp_path / "out")
    names = ["dawn.wav.selections.txt", "dawn.wav-2.selections.txt", "=cmd.flac.selections.txt"]
    assert [file.name for file in files] == names
    boxes = crowsetta.formats.bbox.Raven.from_file(files[0]).to_bbox()
    assert [(box.onset, box.offset, box.low_freq, box.high_freq, box.label) for box in boxes] == [
        (0.0, 10.24, 0.0, 8000.0, ROWS[0][3]),
        (5.12, 15.36, 0.0, 8000.0, "Wind"),
    ]
    (hostile,) = crowsetta.formats.bbox.Raven.from_file(files[1]).to_bbox()
    assert hostile.label == 'Says "hi" then leaves'
    with files[0].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [row["Selection"] for row in rows] == ["1", "2"]
    assert [row["Score"] for row in rows] == ["0.9141", "0.2500"]
    assert {row["Begin Path"] for row in rows} == {"a/dawn.wav"}


def test_audacity_labels_are_read_by_crowsetta(table: pd.DataFrame, tmp_path: Path) -> None:
    file, hostile, _ = write_tags(table, "audacity", tmp_path)
    sequence = crowsetta.formats.seq.AudSeq.from_file(file)
    assert sequence.start_times.tolist() == [0.0, 5.12]
    assert sequence.end_times.tolist() == [10.24, 15.36]
    assert list(sequence.labels) == [f"{ROWS[0][3]} 0.91", "Wind 0.25"]
    assert hostile.read_text(encoding="utf-8").count("\n") == 1


@pytest.mark.parametrize(
    ("format", "read"),
    [
        ("csv", pd.read_csv),
        ("csv-excel", pd.read_csv),
        ("jsonl", lambda file: pd.read_json(file, lines=True)),
        ("parquet", pd.read_parquet),
    ],
)
def test_tables_survive_a_round_trip(format, read, table: pd.DataFrame, tmp_path: Path) -> None:
    (file,) = write_tags(table.assign(rank=1), format, tmp_path / "new" / f"tags.{format}")
    pd.testing.assert_frame_equal(read(file), table, check_dtype=False)


def test_only_csv_for_excel_starts_with_a_byte_order_mark(table: pd.DataFrame) -> None:
    content = render_tags(table, "csv-excel")
    assert content.startswith(codecs.BOM_UTF8)
    assert content.removeprefix(codecs.BOM_UTF8) == render_tags(table, "csv")


def test_very_long_names_are_shortened_to_distinct_files(table: pd.DataFrame, tmp_path: Path) -> None:
    names = [f"{'狗' * 84}{end}" for end in ("a.wav", "b.wav")]
    for name in names:
        (tmp_path / name[1:]).touch()  # such names exist
    files = write_tags(table[:2].assign(file=names), "raven", tmp_path / "out")
    assert len(set(files)) == 2 and all(file.is_file() for file in files)


def test_table_without_the_columns_of_tags_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="score"):
        write_tags(table.drop(columns="score"), "csv", tmp_path / "tags.csv")
