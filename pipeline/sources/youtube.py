"""Fetch media from YouTube with yt-dlp, in processes that can be killed."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.config import FetchConfig, YouTubeConfig
from pipeline.errors import ConfigError, StoreError
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.proxies import host_of
from pipeline.sources.youtube_check import check_youtube
from pipeline.store.scratch import clear_scratch, make_scratch

WATCH_PAGE = "https://www.youtube.com/watch?v={ytid}"
IDLE_S = 12.0
"""Seconds after which an idle process ends. A guest session with 300 requests per hour sends one request in this time.
The number of live processes therefore depends on the rate limit, and not on the number of threads and Ray workers."""
RUN_ERRORS = {error.__name__: error for error in (ConfigError, StoreError)}


class YouTubeSource:
    """Fetches the smallest audio-only format of YouTube videos. Each process fetches one video at a time.

    Tests replace `address` and `extractors` to fetch from another site.
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
        self._start_pool()

    def _start_pool(self) -> None:
        self._idle: list[YouTubeProcess] = []
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_idle", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_pool()

    def check(self) -> None:
        """Check yt-dlp's requirements before the first request. Raises ConfigError, which names the remedy."""
        check_youtube(self.config, self._cookies, self._po_tokens)

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        """Fetch the audio of a video. Raises ConfigError or StoreError if a problem affects the whole run."""
        address = self.address.format(ytid=segment.ytid)
        with self._process() as process:
            answer = process.request(self._request(address, process, proxy), self.fetch_config.deadline_s)
            if answer is None:
                return Failure(Reason.TIMED_OUT, f"{address}: no answer within {self.fetch_config.deadline_s} s")
            if "error" in answer:
                through = f" through the proxy {host_of(proxy)}" if proxy else ""
                raise RUN_ERRORS[answer["error"]](f"{address}{through}: {answer['detail']}")
            if "reason" in answer:
                return Failure(Reason(answer["reason"]), answer["detail"])
            return Media(Path(answer["file"]).read_bytes(), source=answer["source"])

    def _request(self, address: str, process: "YouTubeProcess", proxy: str | None) -> dict[str, Any]:
        options: dict[str, Any] = {
            "proxy": proxy,
            "source_address": self.config.source_address or None,
            "impersonate": self.config.impersonate or None,
        }
        if self._cookies:
            options["cookiefile"] = str(process.cookies)
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
    def _process(self) -> Iterator["YouTubeProcess"]:
        """Borrow a process. It ends after `videos_per_process` videos, because yt-dlp leaks memory."""
        with self._lock:
            # Reuse the process that was returned last, so that surplus processes remain idle and end.
            process = self._idle.pop() if self._idle else None
        process = process or YouTubeProcess(self._cookies)
        try:
            yield process
        finally:
            if process.is_alive and process.num_requests < self.config.videos_per_process:
                self._keep(process)
            else:
                process.end()

    def _keep(self, process: "YouTubeProcess") -> None:
        with self._lock:
            self._idle.append(process)
        timer = threading.Timer(IDLE_S, self._end_if_idle, (process, process.num_requests))
        timer.daemon = True
        timer.start()

    def _end_if_idle(self, process: "YouTubeProcess", num_requests: int) -> None:
        with self._lock:
            if process not in self._idle or process.num_requests != num_requests:
                return
            self._idle.remove(process)
        process.end()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()


class YouTubeProcess:
    """A process that runs `youtube_worker` in a folder of its own."""

    def __init__(self, cookies: str):
        try:
            clear_scratch(Path(tempfile.gettempdir()))
            self._home = make_scratch(Path(tempfile.gettempdir()))
            self.cookies = self._home / "cookies.txt"
            if cookies:  # yt-dlp rewrites the file, so each process needs a copy
                self.cookies.touch(mode=0o600)
                self.cookies.write_text(cookies)
            folder = self._home / "media"
            folder.mkdir()
            command = [sys.executable, "-m", "pipeline.sources.youtube_worker", str(folder)]
            # Start a new process group, so that yt-dlp's child processes can be killed together with it.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
            )
        except OSError as error:
            raise StoreError(
                f"can't start a yt-dlp process in {tempfile.gettempdir()}: {error}; free space or memory there"
            ) from error
        self.num_requests = 0

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def request(self, request: dict[str, Any], deadline_s: float) -> dict[str, Any] | None:
        """Send a request and return the response. If the deadline passes, kill the process and return None."""
        assert self._process.stdin and self._process.stdout
        self.num_requests += 1
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], deadline_s)
            if not ready:
                self.end()
                return None
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if line.endswith(b"\n"):
            return json.loads(line)
        # Wait a moment, because the pipe closes shortly before the exit status is available.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self.end()
        detail = f"{request['address']}: yt-dlp's process ended with {self._process.returncode}"
        return {"reason": Reason.UNKNOWN, "detail": detail}

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
        if hasattr(self, "_process") and self._process.returncode is None:
            self.end()


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read {path}: {error}; correct the --youtube setting that names it") from error
