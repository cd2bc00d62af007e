"""Media from YouTube through yt-dlp, in child processes that can be killed."""

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.config import FetchConfig, YouTubeConfig
from pipeline.errors import ConfigError
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.store.scratch import clear_scratch, make_scratch

WATCH_PAGE = "https://www.youtube.com/watch?v={ytid}"


class YouTubeSource:
    """Fetches the smallest audio-only format of each video. A child fetches one video at a time.

    `address` and `extractors` are other sites' in tests.
    """

    def __init__(
        self,
        config: YouTubeConfig,
        fetch: FetchConfig,
        *,
        address: str = WATCH_PAGE,
        extractors: tuple[str, ...] = ("youtube",),
    ):
        self.config = config
        self.fetch_config = fetch
        self.address = address
        self.extractors = extractors
        self._cookies = _read(config.cookies)
        self._po_tokens = _read(config.po_tokens).split()
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_idle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._idle = queue.SimpleQueue()

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        address = self.address.format(ytid=segment.ytid)
        with self._child() as child:
            answer = child.ask(self._request(address, child, proxy), self.fetch_config.deadline_s)
            if answer is None:
                return Failure(Reason.TIMED_OUT, f"{address}: no answer within {self.fetch_config.deadline_s} s")
            if "reason" in answer:
                return Failure(Reason(answer["reason"]), answer["detail"])
            return Media(Path(answer["file"]).read_bytes(), source=answer["source"])

    def _request(self, address: str, child: "_Child", proxy: str | None) -> dict[str, Any]:
        options: dict[str, Any] = {"proxy": proxy, "source_address": self.config.source_address or None}
        if self._cookies:  # yt-dlp writes the file back, so each child has its own
            options["cookiefile"] = str(child.cookies)
        if self.config.js_runtime:
            name, _, path = self.config.js_runtime.partition(":")
            options["js_runtimes"] = {name: {"path": path} if path else {}}
        arguments = {"player_client": list(self.config.clients), "po_token": self._po_tokens}
        options["extractor_args"] = {"youtube": {name: values for name, values in arguments.items() if values}}
        return {
            "address": address,
            "extractors": self.extractors,
            "max_bytes": self.fetch_config.max_media_bytes,
            "options": {name: value for name, value in options.items() if value is not None},
        }

    @contextmanager
    def _child(self) -> Iterator["_Child"]:
        """Lend a child; one that is used up or that gave no answer is ended."""
        try:
            child = self._idle.get_nowait()
        except queue.Empty:
            child = _Child(self._cookies)
        try:
            yield child
        finally:
            if child.is_alive and child.num_asked < self.config.videos_per_process:
                self._idle.put(child)
            else:
                child.end()

    def close(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().end()


class _Child:
    """A process of `youtube_child` with a folder of its own."""

    def __init__(self, cookies: str):
        clear_scratch(Path(tempfile.gettempdir()))
        self._home = make_scratch(Path(tempfile.gettempdir()))
        self.cookies = self._home / "cookies.txt"
        if cookies:
            self.cookies.touch(mode=0o600)
            self.cookies.write_text(cookies)
        folder = self._home / "media"
        folder.mkdir()
        command = [sys.executable, "-m", "pipeline.sources.youtube_worker", str(folder)]
        # A group of its own: what yt-dlp starts is killed with it.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
        )
        self.num_asked = 0

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any] | None:
        """Return the answer; None, and the process is dead, if there was none in time."""
        assert self._process.stdin and self._process.stdout
        self.num_asked += 1
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], deadline_s)
            line = self._process.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        if line.endswith(b"\n"):
            return json.loads(line)
        status = self._process.poll()
        self.end()
        if status is None:
            return None
        return {"reason": Reason.UNKNOWN, "detail": f"{request['address']}: yt-dlp's process ended with {status}"}

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def __del__(self) -> None:
        if self._process.returncode is None:
            self.end()


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text() if path else ""
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}; repair the setting that names it") from error
