"""A queue of events for a server. Events are written to disk and sent by a thread, so training never waits.

{folder}/{name}.jsonl     undelivered events, one JSON object per line
{folder}/{name}.refused   events that the server refused for good, with the reason

MLflow's own asynchronous logging holds its queue in memory, so a killed process or a lost server loses metrics.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.backoff import backoff
from pipeline.errors import TrackingError

log = logging.getLogger(__name__)

Event = dict[str, Any]
MAX_EVENTS_PER_DELIVERY = 100
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0
"""Longest pause between retries: a server that returns gets the backlog within this time."""


class RefusedError(Exception):
    """The server refuses these events for good; retrying cannot help."""


class MetricsQueue:
    """An ordered queue of events on disk, delivered at least once each by a background thread.

    `deliver` sends a batch of events. It raises RefusedError for events that the server will never accept, which move
    to a separate file, and any other exception for a batch to retry later. Undelivered events of an earlier process
    with the same name are sent first.
    """

    def __init__(self, folder: Path, name: str, deliver: Callable[[Sequence[Event]], None]):
        """Open the queue and start its thread. Raises TrackingError if another process has the same queue open."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self._deliver = folder / f"{name}.jsonl", deliver
        self._stream = self.file.open("a+", encoding="utf-8")
        # A kernel lock instead of a lock file: it is released however the process ends.
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise TrackingError(
                f"another process already logs to run {name} ({self.file} is locked): stop it, or start a new run"
            ) from error
        self._waiting = self._read_leftover()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=f"queue {name}", daemon=True)
        self._thread.start()

    def _read_leftover(self) -> list[Event]:
        """Read the undelivered events, and truncate a last line that a killed process left incomplete."""
        self._stream.seek(0)
        lines = [line for line in self._stream.readlines() if line.endswith("\n")]
        self._stream.truncate(sum(len(line.encode()) for line in lines))
        return [json.loads(line) for line in lines]

    def put(self, event: Event) -> None:
        """Append an event to the file. The thread sends it later."""
        with self._changed:
            # Flush without fsync: the data survives a killed process, and machines crash too rarely to wait for disks.
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
            self._waiting.append(event)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all events are delivered. Return False on timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for the delivery, and release the file. Undelivered events remain in it."""
        if not self.flush(timeout_s):
            log.warning(
                "%d events for MLflow are undelivered and remain in %s. The next job on this machine that uses the same"
                " server delivers them",
                len(self._waiting),
                self.file,
            )
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            self._stream.close()
            if not self._waiting:
                self.file.unlink(missing_ok=True)

    def _run(self) -> None:
        pauses: Iterator[float] | None = None  # set while MLflow does not answer
        num_suspect = 0  # size of a refused batch, resent one by one to isolate the refused events
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if pauses:  # only `close` interrupts a pause: new events do not bring the server back
                    self._changed.wait_for(lambda: self._is_closing, next(pauses))
                if self._is_closing:
                    return
                events = self._waiting[: 1 if num_suspect else MAX_EVENTS_PER_DELIVERY]
            # Without the lock, because a slow server must not block `put`.
            try:
                self._deliver(events)
            except RefusedError as error:
                if len(events) > 1:
                    num_suspect = len(events)
                    continue
                self._set_aside(events[0], error)
            except Exception as error:  # MLflow, requests and SQLAlchemy each raise their own
                if not pauses:
                    log.warning("MLflow does not answer (%s); events wait in %s", _short(error), self.file)
                pauses = pauses or backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
                continue
            if pauses:
                log.warning("MLflow answers again")
            pauses = None
            num_suspect = max(num_suspect - len(events), 0)
            self._remove(len(events))

    def _set_aside(self, event: Event, error: RefusedError) -> None:
        refused = self.file.with_suffix(".refused")
        log.warning("MLflow refused an event (%s); it is stored in %s", _short(error), refused)
        with refused.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"reason": str(error), "at": time.time(), "event": event}) + "\n")

    def _remove(self, num: int) -> None:
        """Remove the first `num` events. The file is truncated once the queue is empty.

        After a kill the file may therefore hold delivered events. The next process sends them again, and `Delivery`
        skips the steps that the server has.
        """
        with self._changed:
            del self._waiting[:num]
            if not self._waiting:
                self._stream.truncate(0)
                self._changed.notify_all()


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
