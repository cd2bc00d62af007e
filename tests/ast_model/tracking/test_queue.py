import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ast_model.tracking.queue import Letter, Outbox, RefusedError
from pipeline.errors import TrackingError


class Receiver:
    def __init__(self, num_outages: int = 0):
        self.got: list[Letter] = []
        self.num_outages = num_outages

    def __call__(self, letters: Sequence[Letter]) -> None:
        if self.num_outages:
            self.num_outages -= 1
            raise OSError("away")
        if any(letter.get("bad") for letter in letters):
            raise RefusedError("no such metric")
        self.got += letters


def test_all_arrive_in_order_although_the_receiver_was_away(tmp_path: Path) -> None:
    receiver = Receiver(num_outages=2)
    outbox = Outbox(tmp_path, "run", receiver)
    for n in range(250):
        outbox.put({"n": n})
    outbox.close(timeout_s=20)
    assert [letter["n"] for letter in receiver.got] == list(range(250))
    assert list(tmp_path.iterdir()) == []


def test_what_was_not_delivered_is_there_for_the_next_process(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "run", Receiver(num_outages=10**6))
    outbox.put({"n": 1})
    outbox.close(timeout_s=0.1)
    with (tmp_path / "run.jsonl").open("a") as stream:
        stream.write('{"n": 2')  # a process killed while it wrote
    receiver = Receiver()
    outbox = Outbox(tmp_path, "run", receiver)
    outbox.put({"n": 3})
    outbox.close(timeout_s=20)
    assert [letter["n"] for letter in receiver.got] == [1, 3]


def test_a_killed_process_leaves_all_it_said(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib; from ast_model.tracking.queue import Outbox\n"
        "def away(letters): raise OSError('away')\n"
        f"box = Outbox(pathlib.Path({str(tmp_path)!r}), 'run', away)\n"
        "for n in range(1000): box.put({'n': n})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False, stderr=subprocess.DEVNULL)
    receiver = Receiver()
    Outbox(tmp_path, "run", receiver).close(timeout_s=20)
    assert [letter["n"] for letter in receiver.got] == list(range(1000))


def test_what_is_refused_is_set_aside_and_holds_up_nothing(tmp_path: Path) -> None:
    receiver = Receiver()
    outbox = Outbox(tmp_path, "run", receiver)
    outbox.put({"bad": True})
    assert outbox.flush(10)
    outbox.put({"n": 2})
    outbox.close(timeout_s=20)
    assert receiver.got == [{"n": 2}]
    (line,) = (tmp_path / "run.refused").read_text().splitlines()
    assert json.loads(line)["reason"] == "no such metric"


def test_two_processes_do_not_share_an_outbox(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "run", Receiver())
    with pytest.raises(TrackingError, match="another process logs to run"):
        Outbox(tmp_path, "run", Receiver())
    outbox.close(timeout_s=20)
