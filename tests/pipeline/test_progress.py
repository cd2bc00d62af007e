import io
import re
from types import SimpleNamespace

import pytest

from pipeline.progress import show_progress


def test_log_lines_state_rate_since_the_first_units_remaining_time_and_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.LINE_EVERY_S", 0.0)
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: clock.now_s)
    with show_progress("convert", 40, "clips", start=10) as progress:
        for clock.now_s, note in ((7.0, "starting workers took 5 s"), (8.0, "2 failed"), (9.0, "")):
            progress.advance(10, note)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # none without news at the end
    assert re.fullmatch(r"convert 20/40 clips in \d:\d\d:\d\d starting workers took 5 s", lines[0])
    assert re.fullmatch(r"convert 30/40 clips in \d:\d\d:\d\d, 10\.0 clips/s, 0:00:01 left 2 failed", lines[1])
    assert "40/40" in lines[2] and "10.0 clips/s, 0:00:00 left" in lines[2]


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
