from pathlib import Path

import numpy as np
import pytest
from sklearn.preprocessing import MultiLabelBinarizer

from pipeline.errors import InputError
from pipeline.labels import Labels, parse_labels, read_labels

OFFICIAL = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00088,Gush\n'


def test_official_form_is_read_and_written_back(tmp_path: Path) -> None:
    file = tmp_path / "class_labels_indices.csv"
    file.write_text(OFFICIAL.replace("\n", "\r\n"), encoding="utf-8-sig")
    labels = read_labels(str(file))
    assert labels.mids == ("/m/09x0r", "/m/05zppz", "/t/dd00088")
    assert labels.names[1] == "Male speech, man speaking"
    assert labels.index_of["/t/dd00088"] == 2
    assert parse_labels(labels.to_csv(), "written") == labels


def test_multi_hot_equals_scikit_learns() -> None:
    indices = [[0, 2], [], [1], [2, 1, 0]]
    expected = MultiLabelBinarizer(classes=[0, 1, 2]).fit_transform(indices)
    np.testing.assert_array_equal(Labels(("a", "b", "c"), ("A", "B", "C")).multi_hot(indices), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the header index,mid,display_name, found 'nothing'"),
        ("mid,name\n/m/1,One\n", "found 'mid,name'"),
        ("index,mid,display_name\n", "at least one class, found none"),
        ("index,mid,display_name\n1,/m/1,One\n", "expected index 0"),
        ("index,mid,display_name\n0,/m/1,One, with comma\n", "expected index 0"),
        ("index,mid,display_name\n0,/m/1,One\n1,/m/1,Two\n", "found several times: '/m/1'"),
    ],
)
def test_bad_tables_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=f"labels.csv.*{message}"):
        parse_labels(text, "labels.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't read the labels .*nowhere.csv"):
        read_labels(str(tmp_path / "nowhere.csv"))
