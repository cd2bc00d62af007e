"""Show the progress of long work as a bar on terminals or as occasional lines in logs."""

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
    """Interface for reporting progress."""

    def advance(self, amount: int, note: str = "") -> None:
        """Count `amount` more finished units, and show `note` at the end of the line."""
        ...

    def reach(self, done: int, total: int) -> None:
        """Set the number of finished units and the total."""
        ...


def format_duration(seconds: float) -> str:
    """Format a duration as h:mm:ss, or as `0.3 s` below one second."""
    return str(timedelta(seconds=round(seconds))) if seconds >= 1 else f"{seconds:.1f} s"


@contextmanager
def show_progress(what: str, total: int, unit: str, start: int = 0) -> Generator[Progress, None, None]:
    """Show the progress of `total` units of work. start: number of units that are already finished."""
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
        display.add_task(what, total=total, completed=start, start_at=start, unit=unit, note="")
        shown = _Shown(display)
        yield shown
        shown.write_line()


class _Rate(ProgressColumn):
    """Shows the average rate and the remaining time. If shards take hours, a moving average would be 0."""

    def render(self, task: Task) -> Text:
        elapsed_s = task.elapsed or 0.0
        rate = (task.completed - task.fields["start_at"]) / elapsed_s if elapsed_s else 0.0
        left = timedelta(seconds=round((task.remaining or 0.0) / rate)) if rate else "?"
        return Text(f"in {timedelta(seconds=round(elapsed_s))}, {rate:.1f} {task.fields['unit']}/s, {left} left")


class _Shown:
    """Displays one task, as plain lines if there is no terminal."""

    def __init__(self, display: Display):
        self._display, self._task = display, display.tasks[0]
        self._written, self._written_s = self._task.completed, time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self._display.update(self._task.id, advance=amount, note=note)
        self.write_line(LINE_EVERY_S)

    def reach(self, done: int, total: int) -> None:
        self._display.update(self._task.id, completed=done, total=total)
        self.write_line(LINE_EVERY_S)

    def write_line(self, min_pause_s: float = 0.0) -> None:
        """Write a line to the log if there is progress and the last line is at least `min_pause_s` old."""
        is_new = self._task.completed != self._written
        if self._display.disable and is_new and time.monotonic() - self._written_s >= min_pause_s:
            self._written, self._written_s = self._task.completed, time.monotonic()
            # Avoid print, which Ray Train wraps in its workers. It would show each line twice.
            sys.stderr.write(" ".join(str(column(self._task)) for column in self._display.columns).rstrip() + "\n")  # type: ignore[operator]
            sys.stderr.flush()
