"""Send a JSON summary to a URL or a program at the end of a long command."""

import json
import logging
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.command_line.program import command
from pipeline.errors import AudioTaggingError, ConfigError, StoppedError, describe, quote

log = logging.getLogger(__name__)

TIMEOUT_S = 15.0
"""Seconds after which the command ends without waiting for the receiver."""
MAX_ERROR_CHARS = 2000
URLS = ("http://", "https://")
Summary = dict[str, Any]
Send = Callable[[bytes], None]


class RefusedError(Exception):
    """The receiver answered, but did not accept the summary."""


@contextmanager
def notifying(receiver: str, kind: str) -> Iterator[Summary]:
    """Send the summary that the block fills to the receiver, even if the block raises. No receiver: do nothing.

    Problems of the receiver raise no errors, except a ConfigError before the block if the file or program does not
    exist.
    kind: `preprocess` or `train`.
    """
    send = open_receiver(receiver) if receiver else None
    summary: Summary = {"kind": kind, "command": command(), "host": socket.gethostname()}
    started = time.time()
    ending: Summary = {"status": "finished", "exit_code": 0}
    try:
        yield summary
    except BaseException as error:
        ending = _describe_end(error)
        raise
    finally:
        if send:
            times = {"started": round(started), "seconds": round(time.time() - started, 1)}
            _send_in_time(send, {**summary, **ending, **times})


def _describe_end(error: BaseException) -> Summary:
    is_stop = isinstance(error, StoppedError | KeyboardInterrupt)
    code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
    message = str(error) if isinstance(error, AudioTaggingError) else describe(error, MAX_ERROR_CHARS)
    return {"status": "stopped" if is_stop else "failed", "exit_code": code, "error": message[:MAX_ERROR_CHARS]}


def open_receiver(receiver: str) -> Send:
    """Return the function that delivers a message to a URL, `@FILE` with a URL, or a program with arguments.

    Raises ConfigError if the file or the program does not exist.
    """
    if receiver.startswith("@"):
        url, *headers = _read_lines(Path(receiver[1:]))
        return lambda data: _post(url, dict(_parse_header(line) for line in headers), data)
    if receiver.startswith(URLS):
        return lambda data: _post(receiver, {}, data)
    words = shlex.split(receiver)
    if not words or not shutil.which(words[0]):
        raise ConfigError(
            f"--notify: expected an address that starts with http:// or https://, @FILE, or a program, found"
            f" {quote(receiver)}; give the program's full path if it is not in PATH"
        )
    return lambda data: _run(words, data)


def _read_lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--notify: can't read {file}: {describe(error)}") from error
    if not lines or not lines[0].startswith(URLS) or any(":" not in line for line in lines):
        raise ConfigError(
            f"--notify: expected an address that starts with http:// or https:// in the first line of {file}, and"
            " headers such as `Authorization: Bearer TOKEN` in further lines"
        )
    return lines


def _parse_header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _post(url: str, headers: Mapping[str, str], data: bytes) -> None:
    import requests  # imported here, so that `--help` does not wait for it

    headers = {"Content-Type": "application/json", **headers}
    # A redirect would turn the POST into a GET.
    answer = requests.post(url, data, headers=headers, timeout=TIMEOUT_S, allow_redirects=False)
    if not 200 <= answer.status_code < 300:
        raise RefusedError(f"status {answer.status_code}")


def _run(words: list[str], data: bytes) -> None:
    ended = subprocess.run(words, input=data, timeout=TIMEOUT_S, capture_output=True, check=False)
    if ended.returncode:
        raise RefusedError(f"exit code {ended.returncode}: {quote(ended.stderr.decode(errors='replace').strip())}")


def _send_in_time(send: Send, summary: Summary) -> None:
    """Deliver a summary within the timeout, or log the failure. A thread limits the total time of slow answers."""
    failures: list[str] = ["no answer in time"]

    def deliver() -> None:
        try:
            send(json.dumps(summary, default=str).encode())
            failures.clear()
        except Exception as error:
            # Log only error types of libraries, because their messages contain the address, which may contain secrets.
            failures[:] = [str(error) if isinstance(error, RefusedError) else type(error).__name__]

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    if failures:
        log.warning("the receiver of --notify did not accept the summary: %s", failures[0])
