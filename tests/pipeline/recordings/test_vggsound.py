from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.labels import read_labels
from pipeline.recordings.vggsound import read_vggsound, write_audioset_tables
from pipeline.segments import read_segments

TABLE = """---g-f_I2yQ,1,people marching,test
--0PQM4-hqg,30,waterfall burbling,train
--9O4XZOge4,30,"female speech, woman speaking",train
--Lj4Y_96f0,120,"bee, wasp, etc. buzzing",train
--U7joUcTCo,0,people marching,test
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table in the official form: no header, and quotes only around labels with commas."""
    file = tmp_path / "vggsound.csv"
    file.write_text(TABLE)
    return file


def test_official_table_is_converted_to_audioset_tables(table: Path, tmp_path: Path) -> None:
    write_audioset_tables(read_vggsound(table), tmp_path / "tables")
    labels = read_labels(str(tmp_path / "tables/class_labels_indices.csv"))
    names = ("bee, wasp, etc. buzzing", "female speech, woman speaking", "people marching", "waterfall burbling")
    assert labels.names == names
    train = read_segments(str(tmp_path / "tables/train_segments.csv"))
    test = read_segments(str(tmp_path / "tables/test_segments.csv"))
    assert [(each.ytid, each.start_ms, each.end_ms) for each in train] == [
        ("--0PQM4-hqg", 30_000, 40_000),
        ("--9O4XZOge4", 30_000, 40_000),
        ("--Lj4Y_96f0", 120_000, 130_000),
    ]
    assert [labels.names[labels.index_of[mid]] for each in train for mid in each.labels] == [
        names[3],
        names[1],
        names[0],
    ]
    assert [each.split for each in test] == ["test", "test"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"female speech, woman speaking"', "female speech, woman speaking", r"line 3: expected an id, .* with quotes"),
        ('speaking",train', "speaking,train", r"found an unclosed quote, or a quote around a part of a label"),
        ('"bee, wasp', 'the "bee", wasp', r"line 4: expected an id, a start, a label and a split"),
        (
            '"bee, wasp, etc. buzzing"',
            '"bee" buzzing',
            r"found an unclosed quote, or a quote around a part of a label",
        ),
        ("---g-f_I2yQ,1", "youtube_id,start", r"line 1: expected a YouTube id and a start in whole seconds"),
        ("---g-f_I2yQ,1", "---g-f_I2yQ,١", r"line 1: expected a YouTube id and a start in whole seconds"),
        ("people marching,test", "people marching,eval", r"line 1: expected the split train or test, found 'eval'"),
        ("waterfall burbling", "", r"line 2: expected an id, a start, a label and a split"),
        ("--U7joUcTCo,0", "---g-f_I2yQ,1", ""),
        ("--U7joUcTCo,0,people", "---g-f_I2yQ,1,others", r"line 5: the clip ---g-f_I2yQ from 1 s appears above"),
    ],
)
def test_invalid_rows_are_rejected_with_their_line(table: Path, old: str, new: str, message: str) -> None:
    table.write_text(TABLE.replace(old, new, 1))
    if not message:
        assert len(read_vggsound(table)) == 5  # the same row twice counts once, later
        return
    with pytest.raises(InputError, match=message):
        read_vggsound(table)


def test_table_with_one_split_is_rejected(table: Path) -> None:
    table.write_text(TABLE.replace(",test", ",train"))
    with pytest.raises(InputError, match="found none of test"):
        read_vggsound(table)
