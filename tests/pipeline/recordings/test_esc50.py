import csv
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.recordings.esc50 import read_esc50


def make_folder(folder: Path) -> None:
    """Make a folder in the official layout, with two classes in five folds."""
    (folder / "meta").mkdir(parents=True)
    (folder / "audio").mkdir()
    rows = [
        (f"{fold}-{100 + fold}-A-{target}.wav", fold, target, name, "False", 100 + fold, "A")
        for fold in range(1, 6)
        for target, name in ((5, "cat"), (0, "dog"))
    ]
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows])
    for row in rows:
        (folder / "audio" / row[0]).touch()


def test_official_folder_is_read(tmp_path: Path) -> None:
    make_folder(tmp_path)
    recordings, classes = read_esc50(tmp_path)
    assert classes == ["dog", "cat"]
    assert len(recordings) == 10
    first = recordings[0]
    assert (first.path.name, first.labels, first.split, first.end_ms) == ("1-101-A-5.wav", ("cat",), "fold1", 5000)
    (tmp_path / "audio" / "3-103-A-0.wav").unlink()
    with pytest.raises(InputError, match=r"1 are not in .*audio \(3-103-A-0\.wav\)"):
        read_esc50(tmp_path)
    with pytest.raises(InputError, match=r"expected ESC-50's meta/esc50\.csv"):
        read_esc50(tmp_path / "audio")
