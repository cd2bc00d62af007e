from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.recordings.speechcommands import read_speech_commands
from pipeline.recordings.tables import write_tables
from pipeline.segments import read_segments


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in the official layout: equal file names in each word's folder, two lists, and background noise."""
    for word in ("yes", "no"):
        (tmp_path / word).mkdir()
        for index in range(5):
            (tmp_path / word / f"0a7c2a8d_nohash_{index}.wav").touch()
    (tmp_path / "_background_noise_").mkdir()
    (tmp_path / "_background_noise_" / "pink_noise.wav").touch()
    (tmp_path / "validation_list.txt").write_text("yes/0a7c2a8d_nohash_0.wav\nno/0a7c2a8d_nohash_1.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/0a7c2a8d_nohash_3.wav\n")
    return tmp_path


def test_official_folder_is_read(folder: Path) -> None:
    recordings, words = read_speech_commands(folder)
    assert words == ["no", "yes"]
    assert Counter(each.split for each in recordings) == {"train": 7, "valid": 2, "test": 1}
    assert [each.path.parent.name for each in recordings if each.split == "test"] == ["yes"]
    assert {(each.labels, each.path.parent.name) for each in recordings} == {(("yes",), "yes"), (("no",), "no")}


def test_equal_names_in_different_folders_get_different_ids(folder: Path, tmp_path: Path) -> None:
    recordings, words = read_speech_commands(folder)
    splits = write_tables(recordings, words, tmp_path / "tables")
    segments = [each for name in splits for each in read_segments(str(tmp_path / f"tables/{name}_segments.csv"))]
    assert len({segment.key for segment in segments}) == len(recordings) == 10


def test_incomplete_folder_is_rejected(folder: Path) -> None:
    (folder / "yes" / "0a7c2a8d_nohash_3.wav").unlink()
    with pytest.raises(InputError, match=r"1 of 3 listed files are missing, such as yes/0a7c2a8d_nohash_3\.wav"):
        read_speech_commands(folder)
    with pytest.raises(InputError, match=r"expected Speech Commands' validation_list\.txt"):
        read_speech_commands(folder / "no")
