import os
from pathlib import Path

import pytest

from pipeline.sources.walk import walk_files


def make_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"content")
    return path


def test_linked_folders_are_visited_once(tmp_path: Path) -> None:
    make_file(tmp_path / "media/part/a.wav")
    make_file(tmp_path / "disk2/b.wav")
    (tmp_path / "media/again").symlink_to(tmp_path / "media/part")
    (tmp_path / "media/disk2").symlink_to(tmp_path / "disk2")
    (tmp_path / "disk2/circle").symlink_to(tmp_path / "media")
    found = [Path(path).relative_to(tmp_path).as_posix() for path in walk_files(str(tmp_path / "media"))]
    assert found == ["media/part/a.wav", "media/disk2/b.wav"]


def test_hidden_files_pipes_and_dangling_links_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_file(tmp_path / "a.wav")
    make_file(tmp_path / "._a.wav")
    make_file(tmp_path / ".hidden/b.wav")
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "missing")
    (tmp_path / "itself.wav").symlink_to(tmp_path / "itself.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    assert list(walk_files(str(tmp_path))) == [str(tmp_path / "a.wav")]
    assert "skipped 3 names that can't be read" in caplog.text
    hidden = [Path(path).name for path in walk_files(str(tmp_path), with_hidden=True)]
    assert hidden == ["._a.wav", "b.wav", "a.wav"]
