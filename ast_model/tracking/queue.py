"""Events on their way to a server: on disk first, then sent by a thread, so that a training never waits for it.

{folder}/{name}.jsonl     events that are not delivered yet, one JSON object a line
{folder}/{name}.refused   events that the receiver will never take, with its reason
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


class RefusedError(Exception):
    """The receiver will not take these events, however often it is asked."""


class MetricsQueue:
    """Events in the order in which they were put, each delivered at least once.

    `deliver` takes some events whole, or raises: RefusedError to have them set aside, anything else to be called
    again later. Events that an earlier process left undelivered under the same name come first.
    """

    def __init__(self, folder: Path, name: str, deliver: Callable[[Sequence[Event]], None]):
        """Raises TrackingError if another process has the same queue open."""
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self._deliver = folder / f"{name}.jsonl", deliver
        self._stream = self.file.open("a+", encoding="utf-8")
        # A lock on the open file, and not a file that says so: the kernel lets go of it however the process ends.
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._stream.close()
            raise TrackingError(
                f"another process logs to run {name} already ({self.file} is locked): stop it, or start a new run"
            ) from error
        self._waiting = self._read_left()
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=f"queue {name}", daemon=True)
        self._thread.start()

    def _read_left(self) -> list[Event]:
        """Read what is there; cut off a last line that a killed process left incomplete."""
        self._stream.seek(0)
        lines = [line for line in self._stream.readlines() if line.endswith("\n")]
        self._stream.truncate(sum(len(line.encode()) for line in lines))
        return [json.loads(line) for line in lines]

    def put(self, event: Event) -> None:
        """Write an event to disk, from where it is sent later."""
        with self._changed:
            # Flushed, not synced: that outlives a killed process, and machines crash too rarely to wait for the disk.
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
            self._waiting.append(event)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is delivered; return False if it isn't in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Wait for what is left, and release the file. What isn't delivered in time stays there."""
        if not self.flush(timeout_s):
            log.warning(
                "%d entries for MLflow are not delivered: they wait in %s until the next job on this machine that uses"
                " the same server",
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
        pauses: Iterator[float] | None = None  # while MLflow does not answer
        num_suspect = 0  # of which one or more are refused: they go alone, so that the others arrive
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if pauses:  # cut short by close, not by new events: they don't bring the server back
                    self._changed.wait_for(lambda: self._is_closing, next(pauses))
                if self._is_closing:
                    return
                events = self._waiting[: 1 if num_suspect else MAX_EVENTS_PER_DELIVERY]
            # Without the lock, since a server that is slow to fail must not hold up `put`.
            try:
                self._deliver(events)
            except RefusedError as error:
                if len(events) > 1:
                    num_suspect = len(events)
                    continue
                self._set_aside(events[0], error)
            except Exception as error:  # of whatever library is between us and the server
                if not pauses:
                    log.warning("MLflow does not answer (%s); entries are kept in %s", _short(error), self.file)
                pauses = pauses or backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
                continue
            if pauses:
                log.warning("MLflow answers again")
            pauses = None
            num_suspect = max(num_suspect - len(events), 0)
            self._remove(len(events))

    def _set_aside(self, event: Event, error: RefusedError) -> None:
        refused = self.file.with_suffix(".refused")
        log.warning("MLflow refused an entry (%s); it is in %s", _short(error), refused)
        with refused.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"reason": str(error), "at": time.time(), "event": event}) + "\n")

    def _remove(self, num: int) -> None:
        """Remove the first events, on disk once none is left.

        A process that is killed before that leaves delivered events in the file. The next one delivers them again, and
        the receiver, which knows the last step of each metric, drops them.
        """
        with self._changed:
            del self._waiting[:num]
            if not self._waiting:
                self._stream.truncate(0)
                self._changed.notify_all()


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
