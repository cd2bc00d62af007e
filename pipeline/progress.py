"""Progress of long work: a bar in a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINE_EVERY_S = 10.0


class Progress(Protocol):
    def advance(self, amount: int, note: str = "") -> None:
        """Say that `amount` more is done; `note` stands beside the bar."""
        ...

    def reach(self, done: int, total: int) -> None:
        """Say that `done` of `total` is done, where the total was not known before."""
        ...


@contextmanager
def show_progress(what: str, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
    """Show how far `total` units of work are."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Bars(*columns, console=Console(stderr=True)) as bars:
            yield _Bar(bars, what, total, start)
    else:
        lines = _Lines(what, total, unit, start)
        yield lines
        lines.finish()


class _Bar:
    def __init__(self, bars: Bars, what: str, total: int, start: int):
        self.bars = bars
        self.task = bars.add_task(what, total=total, completed=start, note="")

    def advance(self, amount: int, note: str = "") -> None:
        self.bars.update(self.task, advance=amount, note=note)

    def reach(self, done: int, total: int) -> None:
        self.bars.update(self.task, completed=done, total=total)


class _Lines:
    def __init__(self, what: str, total: int, unit: str, start: int):
        self.what, self.total, self.unit = what, total, unit
        self.start = self.done = self.said = start
        self.note = ""
        self.started = self.last_line = time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        self.note = note
        if time.monotonic() - self.last_line >= LINE_EVERY_S:
            self._write()

    def reach(self, done: int, total: int) -> None:
        self.total = total
        self.advance(done - self.done)

    def finish(self) -> None:
        if self.said != self.done:
            self._write()

    def _write(self) -> None:
        self.last_line = time.monotonic()
        self.said = self.done
        elapsed_s = self.last_line - self.started
        rate = (self.done - self.start) / elapsed_s if elapsed_s > 0 else 0.0
        line = f"{self.what}: {self.done}/{self.total} {self.unit}, {elapsed_s:.0f} s, {rate:.1f} {self.unit}/s"
        # Not print, which Ray Train wraps in its workers and shows twice.
        sys.stderr.write(line + (f", {self.note}\n" if self.note else "\n"))
        sys.stderr.flush()
