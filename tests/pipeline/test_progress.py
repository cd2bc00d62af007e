import io
import re

import pytest

from pipeline.progress import show_progress


def test_log_lines_state_rate_remaining_time_and_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.LINE_EVERY_S", 0.0)
    with show_progress("convert", 40, "clips", start=10) as progress:
        progress.advance(15, "2 failed")
        progress.reach(40, 40)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # none without news at the end
    assert re.fullmatch(r"convert 25/40 clips in 0:00:00, \d+\.\d clips/s, 0:00:00 left 2 failed", lines[0])
    assert lines[1].startswith("convert 40/40 clips")


def test_lines_are_rare_except_the_final_state(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("convert", 100, "clips") as progress:
        for _ in range(100):
            progress.advance(1)
    assert [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()] == ["convert 100/100 clips"]


def test_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "150")
    with show_progress("convert", 40, "clips") as progress:
        progress.advance(40, "2 failed")
        terminal = progress._display.console.file  # pyright: ignore
    shown = terminal.getvalue()
    assert "━" in shown
    assert re.search(r"convert .*40/40.* clips .*clips/s, 0:00:00 left .*2 failed", shown, re.DOTALL)
