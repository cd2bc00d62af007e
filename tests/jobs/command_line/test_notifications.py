"""Notifications, sent by a real command to a real server or program."""

import json
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.command_line import notifications
from jobs.command_line.notifications import notifying, open_receiver
from jobs.preprocess import COMMAND_LINE
from pipeline.errors import ConfigError, StoppedError


class Receiver(HTTPServer):
    """A server that records requests and answers with `status`, after `pause_s`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.status, self.pause_s = 200, 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hooks/secret"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((dict(self.headers), body))
        time.sleep(self.server.pause_s)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_failed_rerun_is_reported_to_a_url_with_headers_from_a_file(tmp_path: Path, receiver: Receiver) -> None:
    file = tmp_path / "receiver"
    file.write_text(f"{receiver.url}\nAuthorization: Bearer token\n")
    flags = ["--root", str(tmp_path / "store"), "--metadata", str(tmp_path / "none"), "--no-track"]
    exit_code = COMMAND_LINE.main(["run", *flags, "--notify", f"@{file}"])
    [(headers, summary)] = receiver.received
    assert headers["Authorization"] == "Bearer token"
    assert headers["Content-Type"] == "application/json"
    assert summary["exit_code"] == exit_code == 1
    assert (summary["kind"], summary["status"]) == ("preprocess", "failed")
    assert str(tmp_path / "none") in summary["error"]


def test_program_reads_the_summary_from_stdin_without_a_shell(tmp_path: Path) -> None:
    target = tmp_path / "$(touch injected) summary.json"
    program = shlex.join([sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write(sys.stdin.read())"])
    with notifying(f"{program} {shlex.quote(str(target))}", "train") as summary:
        summary["run"] = "demo-1"
    sent = json.loads(target.read_text())
    assert (sent["run"], sent["status"], sent["exit_code"]) == ("demo-1", "finished", 0)
    assert "error" not in sent


def test_stop_is_distinguished_from_a_failure(receiver: Receiver) -> None:
    with pytest.raises(StoppedError), notifying(receiver.url, "train"):
        raise StoppedError("asked to stop; resume with --resume demo-1")
    [(_, summary)] = receiver.received
    assert (summary["status"], summary["exit_code"]) == ("stopped", 75)


@pytest.mark.parametrize(
    ("status", "pause_s", "reason"), [(503, 0, "status 503"), (302, 0, "302"), (200, 1, "no answer")]
)
def test_receiver_never_fails_or_blocks_the_run(
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    status: int,
    pause_s: float,
    reason: str,
) -> None:
    monkeypatch.setattr(notifications, "TIMEOUT_S", 0.3)
    receiver.status, receiver.pause_s = status, pause_s
    with notifying(receiver.url, "train"):
        pass
    assert re.search(f"did not accept the summary: (status )?({reason})", caplog.text)


def test_log_omits_the_address_of_an_unreachable_receiver(caplog: pytest.LogCaptureFixture) -> None:
    with notifying("http://127.0.0.1:1/hooks/secret", "train"):
        pass
    assert "did not accept the summary: ConnectionError" in caplog.text
    assert "secret" not in caplog.text


def test_failing_program_is_logged_with_its_message(caplog: pytest.LogCaptureFixture) -> None:
    with notifying(shlex.join([sys.executable, "-c", "raise SystemExit('mailbox is full')"]), "train"):
        pass
    assert "exit code 1: 'mailbox is full'" in caplog.text


@pytest.mark.parametrize("receiver", ["no-such-program --flag", "@missing", "ftp://host/path"])
def test_impossible_receivers_are_rejected_before_the_run(receiver: str) -> None:
    with pytest.raises(ConfigError, match="--notify"):
        open_receiver(receiver)
