"""Serve the media of a miniature over HTTP on the loopback interface, with the planned faults."""

import re
import socket
import socketserver
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.miniature.plan import Fault, PlannedClip

HOST = "127.0.0.1"
CONTENT_TYPES = {
    ".webm": "audio/webm",
    ".m4a": "audio/mp4",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".wav": "audio/wav",
    ".mp4": "video/mp4",
}
WEB_PAGE = b"<!DOCTYPE html><html><body><h1>Before you continue</h1><p>Please accept our terms.</p></body></html>\n"
STALL_BYTES = 1000


@dataclass(frozen=True)
class MiniatureServer:
    """A running server."""

    media_address: str
    """Template of the media's addresses, which contains `{ytid}`."""


@contextmanager
def serve_clips(clips: tuple[PlannedClip, ...], media_folder: Path, port: int) -> Iterator[MiniatureServer]:
    """Serve media within the context. When the context ends, all connections are closed and all threads are joined.

    Port 0 selects a free port. Raises ConfigError if the port is in use.
    """
    try:
        server = _Server((HOST, port), _Handler)
    except OSError as error:
        raise ConfigError(
            f"the media server can't listen on port {port} of {HOST}: {error.strerror}; stop the program that uses the"
            " port, or choose another port (0 for any free one)"
        ) from error
    server.clips = {clip.segment.ytid: clip for clip in clips}
    server.media_folder = media_folder
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="miniature")
    thread.start()
    try:
        yield MiniatureServer(f"http://{HOST}:{server.server_address[1]}/media/{{ytid}}")
    finally:
        server.shutdown()
        thread.join()
        server.hang_up()
        server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    """A TCP server that can disconnect its clients, so that its threads end.

    `http.server.HTTPServer` is not used because it looks up this machine's name, which can take seconds.
    """

    allow_reuse_address = True
    daemon_threads = False
    request_queue_size = 128
    clips: dict[str, PlannedClip]
    media_folder: Path

    def __init__(self, *args) -> None:
        self.num_requests: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def count_request(self, ytid: str) -> int:
        with self._lock:
            self.num_requests[ytid] += 1
            return self.num_requests[ytid]

    def process_request(self, request, client_address) -> None:
        assert isinstance(request, socket.socket)
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        with self._lock:
            for request in self._open:
                with suppress(OSError):  # the client has already disconnected
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        """Ignore errors caused by clients that disconnect."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        ytid = self.path.removeprefix("/media/")
        clip = self.server.clips.get(ytid)
        num_requests = self.server.count_request(ytid)
        if clip is None or clip.fault == Fault.MISSING:
            self.send_error(HTTPStatus.NOT_FOUND)
        elif clip.fault == Fault.BUSY_TWICE and num_requests <= 2:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        elif clip.file_name is None:
            self._send(WEB_PAGE, "text/html; charset=utf-8")
        else:
            path = self.server.media_folder / clip.file_name
            self._send(path.read_bytes(), CONTENT_TYPES[path.suffix], clip.fault)

    def _send(self, content: bytes, content_type: str, fault: Fault | None = None) -> None:
        """Send the content or the requested range. If a fault is planned, it stops the transfer."""
        wanted = self._wanted_range(len(content))
        if wanted is None:
            self.send_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            return
        start, end = wanted
        if "Range" in self.headers:
            self.send_response(HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Connection", "close")
        self.end_headers()
        # Never send any bytes beyond the limit, so that resuming the transfer does not help.
        limits: dict[Fault | None, int] = {Fault.CUT_OFF: len(content) // 2, Fault.STALL: STALL_BYTES}
        last = limits.get(fault, len(content))
        self.wfile.write(content[start : min(end, last)])
        if fault == Fault.STALL:
            self.connection.recv(1)  # wait until the client or the server closes the connection

    def _wanted_range(self, num_bytes: int) -> tuple[int, int] | None:
        """Return the first byte and the end of the requested range, or None if the range is invalid."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
        if match is None or match.groups() == ("", ""):
            return None
        first, last = match.groups()
        if not first:
            return max(0, num_bytes - int(last)), num_bytes
        end = min(num_bytes, int(last) + 1) if last else num_bytes
        return (int(first), end) if int(first) < end else None

    def log_message(self, format: str, *args) -> None:
        """Don't log requests, because the demo shows its progress in the same terminal."""
