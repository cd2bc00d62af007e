"""Show the progress of long work, with a bar in terminals and occasional plain lines in logs."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Display
from rich.text import Text

LINE_EVERY_S = 10.0


class Progress(Protocol):
    def advance(self, amount: int, note: str = "") -> None:
        """Add `amount` finished units, and show `note` at the end of the line."""
        ...

    def reach(self, done: int, total: int) -> None:
        """Set the number of finished units and the total."""
        ...


def format_duration(seconds: float) -> str:
    """Format a duration as h:mm:ss, or as `0.3 s` if it is below one second."""
    return str(timedelta(seconds=round(seconds))) if seconds >= 1 else f"{seconds:.1f} s"


@contextmanager
def show_progress(what: str, total: int, unit: str, start: int = 0) -> Generator[Progress, None, None]:
    """Show the progress of `total` units of work, `start` of which are already finished."""
    bar = [BarColumn()] if sys.stderr.isatty() else []
    columns = [
        TextColumn(what),
        *bar,
        MofNCompleteColumn(),
        TextColumn(unit),
        _Rate(),
        TextColumn("{task.fields[note]}"),
    ]
    with Display(*columns, console=Console(stderr=True), disable=not bar) as display:
        display.add_task(what, total=total, completed=start, start_at=start, unit=unit, note="", first=None)
        shown = _Shown(display)
        yield shown
        shown.write_line()


class _Rate(ProgressColumn):
    """Shows the average rate and the remaining time. A moving average would drop to 0 if shards take hours.

    The rate is measured from the first finished units, because workers take seconds to start.
    """

    def render(self, task: Task) -> Text:
        elapsed_s = task.elapsed or 0.0
        shown = f"in {timedelta(seconds=round(elapsed_s))}"
        first_done, first_s = task.fields["first"] or (task.completed, 0.0)
        num_timed, timed_s = task.completed - first_done, time.monotonic() - first_s
        if not num_timed and task.finished:  # all units were reported at once
            num_timed, timed_s = task.completed - task.fields["start_at"], elapsed_s
        if num_timed <= 0 or timed_s <= 0:
            return Text(shown)
        left = timedelta(seconds=round((task.remaining or 0.0) * timed_s / num_timed))
        return Text(f"{shown}, {num_timed / timed_s:.1f} {task.fields['unit']}/s, {left} left")


class _Shown:
    """Displays one task. If the output is not a terminal, it writes plain lines instead."""

    def __init__(self, display: Display):
        self._display, self._task = display, display.tasks[0]
        self._written, self._written_s = self._task.completed, time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self._display.update(self._task.id, advance=amount, note=note)
        self._start_clock()
        self.write_line(LINE_EVERY_S)

    def reach(self, done: int, total: int) -> None:
        self._display.update(self._task.id, completed=done, total=total)
        self._start_clock()
        self.write_line(LINE_EVERY_S)

    def _start_clock(self) -> None:
        if not self._task.fields["first"]:
            self._task.fields["first"] = (self._task.completed, time.monotonic())

    def write_line(self, min_pause_s: float = 0.0) -> None:
        """Write a line to the log, unless nothing changed or the last line is less than `min_pause_s` old."""
        is_new = self._task.completed != self._written
        if self._display.disable and is_new and time.monotonic() - self._written_s >= min_pause_s:
            self._written, self._written_s = self._task.completed, time.monotonic()
            # Don't use print: Ray Train wraps it in its workers, which would show each line twice.
            sys.stderr.write(" ".join(str(column(self._task)) for column in self._display.columns).rstrip() + "\n")  # type: ignore[operator]
            sys.stderr.flush()
