import csv
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.recordings.urbansound8k import read_urbansound8k

HEADER = "slice_file_name,fsID,start,end,salience,fold,classID,class".split(",")


def make_folder(folder: Path, leak: bool = False) -> Path:
    """Make a folder in the official layout: in each of ten folds, two clips from one recording per class."""
    (folder / "metadata").mkdir(parents=True)
    rows = []
    for fold in range(1, 11):
        for number, name in ((3, "dog_bark"), (0, "air_conditioner")):
            for part in range(2):
                source = 100 * fold + number
                home = fold % 10 + 1 if leak and (fold, part) == (4, 1) else fold
                rows.append((f"{source}-{number}-0-{part}.wav", source, 0.5, 4.5, 1, home, number, name))
    for row in rows:
        file = folder / "audio" / f"fold{row[5]}" / row[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    with (folder / "metadata" / "UrbanSound8K.csv").open("w", newline="") as table:
        csv.writer(table).writerows([HEADER, *rows])
    return folder


def test_official_folder_is_read(tmp_path: Path) -> None:
    recordings, classes = read_urbansound8k(make_folder(tmp_path))
    assert classes == ["air_conditioner", "dog_bark"]
    first = recordings[0]
    assert (first.path.name, first.labels, first.split, first.end_ms) == ("103-3-0-0.wav", ("dog_bark",), "fold1", 4000)
    assert {each.path.parent.name == each.split for each in recordings} == {True}
    (tmp_path / "audio/fold3/300-0-0-1.wav").unlink()
    with pytest.raises(InputError, match=r"names 40 files; 1 are not in .*audio \(300-0-0-1\.wav\)"):
        read_urbansound8k(tmp_path)
    with pytest.raises(InputError, match=r"expected UrbanSound8K's metadata/UrbanSound8K\.csv with slice_file_name"):
        read_urbansound8k(tmp_path / "audio")


def test_folds_that_share_a_recording_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found 2 recordings in several, such as fsID '403' in 4, 5"):
        read_urbansound8k(make_folder(tmp_path, leak=True))
