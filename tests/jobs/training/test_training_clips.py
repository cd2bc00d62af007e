from pathlib import Path

import pytest

from jobs import audioset, finetune
from jobs.command_line.cli import CommandLine


@pytest.mark.parametrize("command_line", [audioset.COMMAND_LINE, finetune.COMMAND_LINE])
def test_malformed_exclusion_is_reported_before_anything_is_fetched_or_written(
    command_line: CommandLine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sounds").mkdir()
    data = [] if command_line is audioset.COMMAND_LINE else ["--data", str(tmp_path / "sounds")]
    argv = ["--root", str(tmp_path / "store"), *data, "--data.exclude", "silense > 0.9"]
    assert command_line.main(argv) == 2
    assert "--data.exclude: expected a column, found 'silense'; did you mean silence?" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
