import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ast_model.tracking.queue import Event, MetricsQueue, RefusedError
from pipeline.errors import TrackingError


class Receiver:
    def __init__(self, num_outages: int = 0):
        self.got: list[Event] = []
        self.num_outages = num_outages

    def __call__(self, events: Sequence[Event]) -> None:
        if self.num_outages:
            self.num_outages -= 1
            raise OSError("unreachable")
        if any(event.get("bad") for event in events):
            raise RefusedError("no such metric")
        self.got += events


@pytest.mark.slow
def test_events_arrive_in_order_after_an_outage(tmp_path: Path) -> None:
    receiver = Receiver(num_outages=2)
    queue = MetricsQueue(tmp_path, "run", receiver)
    for n in range(250):
        queue.put({"n": n})
    queue.close(timeout_s=20)
    assert [event["n"] for event in receiver.got] == list(range(250))
    assert list(tmp_path.iterdir()) == []


def test_undelivered_events_are_delivered_by_the_next_process(tmp_path: Path) -> None:
    queue = MetricsQueue(tmp_path, "run", Receiver(num_outages=10**6))
    queue.put({"n": 1})
    queue.close(timeout_s=0.1)
    with (tmp_path / "run.jsonl").open("a") as stream:
        stream.write('{"n": 2')  # the process was killed while writing
    receiver = Receiver()
    queue = MetricsQueue(tmp_path, "run", receiver)
    queue.put({"n": 3})
    queue.close(timeout_s=20)
    assert [event["n"] for event in receiver.got] == [1, 3]


@pytest.mark.process
def test_events_of_a_killed_process_survive(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib; from ast_model.tracking.queue import MetricsQueue\n"
        "def fail(events): raise OSError('unreachable')\n"
        f"queue = MetricsQueue(pathlib.Path({str(tmp_path)!r}), 'run', fail)\n"
        "for n in range(1000): queue.put({'n': n})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False, stderr=subprocess.DEVNULL)
    receiver = Receiver()
    MetricsQueue(tmp_path, "run", receiver).close(timeout_s=20)
    assert [event["n"] for event in receiver.got] == list(range(1000))


def test_refused_event_is_stored_separately_and_does_not_block_the_queue(tmp_path: Path) -> None:
    receiver = Receiver()
    queue = MetricsQueue(tmp_path, "run", receiver)
    queue.put({"bad": True})
    assert queue.flush(10)
    queue.put({"n": 2})
    queue.close(timeout_s=20)
    assert receiver.got == [{"n": 2}]
    (line,) = (tmp_path / "run.refused").read_text().splitlines()
    assert json.loads(line)["reason"] == "no such metric"


@pytest.mark.slow
def test_refused_event_in_a_batch_does_not_block_the_other_events(tmp_path: Path) -> None:
    receiver = Receiver(num_outages=1)  # the outage collects all events into one batch
    queue = MetricsQueue(tmp_path, "run", receiver)
    for event in ({"n": 1}, {"bad": True}, {"n": 2}):
        queue.put(event)
    queue.close(timeout_s=20)
    assert receiver.got == [{"n": 1}, {"n": 2}]
    (line,) = (tmp_path / "run.refused").read_text().splitlines()
    assert json.loads(line)["event"] == {"bad": True}


def test_queue_cannot_be_opened_twice(tmp_path: Path) -> None:
    queue = MetricsQueue(tmp_path, "run", Receiver())
    with pytest.raises(TrackingError, match="another process already logs to run"):
        MetricsQueue(tmp_path, "run", Receiver())
    queue.close(timeout_s=20)
