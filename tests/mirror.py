"""HTTP server on loopback with one behaviour per id, named by the id."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
from av.audio.frame import AudioFrame

from pipeline.records import Segment


def segment(ytid: str, start_ms: int = 0, end_ms: int = 10_000) -> Segment:
    return Segment(ytid, start_ms, end_ms, ("/m/1",), "eval")


RETRY_AFTER = {"1": "7", "2": "soon", "3": "9" * 5_000, "4": "Fri, 01 Jan 99999 00:00:00 GMT", "5": "-1"}
FAR_FUTURE = "Fri, 01 Jan 2100 00:00:00 GMT"


SILENCE_S = 60
"""Far beyond every deadline, so a fetch that waited for the response would give another result."""

BAD_LOCATIONS = [
    "/café.flac",  # sent as Latin-1 instead of UTF-8
    "http://[::1",
    "http://[fe80::zz]/whole.flac",
    "ftp://host/whole.flac",
    "http://host:99999/",
    f"http://{'a' * 300}/",
    "/redirect6.flac",
]


@cache
def ten_hours_of_silence() -> bytes:
    """Return a FLAC file of less than 20 kB."""
    file = BytesIO()
    with av.open(file, "w", format="flac") as output:
        stream: Any = output.add_stream("flac", rate=1_000, layout="mono", options={"frame_size": "60000"})
        frame = AudioFrame.from_ndarray(np.zeros((1, 60_000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 1_000
        for minute in range(600):
            frame.pts = minute * 60_000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


@dataclass
class Mirror:
    """Running server: its address, requests per path, and requested ranges."""

    address: str
    content: bytes
    num_requests: Counter[str] = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    user_agents: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Hold the responses of `mute` and `trickle` until the context ends."""
        self.released.clear()
        try:
            yield
        finally:
            self.released.set()


class Handler(BaseHTTPRequestHandler):
    mirror: Mirror
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.strip("/").removesuffix(".flac").removesuffix(".tar")
        self.mirror.num_requests[name] += 1
        self.mirror.user_agents.append(self.headers.get("User-Agent", ""))
        with suppress(ConnectionError):
            getattr(self, f"send_{name.rstrip('0123456789')}", self.send_whole)(name)
        self.close_connection = True

    def head(self, status: int = 200, size: int | None = None, kind: str = "audio/flac", **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if size is not None:
            self.send_header("Content-Length", str(size))
        for key, value in more.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()

    def send_whole(self, name: str) -> None:
        self.head(size=len(self.mirror.content))
        self.wfile.write(self.mirror.content)

    def send_status(self, name: str) -> None:
        self.send_error(int(name.removeprefix("status")))

    def send_patience(self, name: str) -> None:
        self.head(503 if name == "patience" else 429, 0, Retry_After=RETRY_AFTER.get(name[-1], FAR_FUTURE))

    def send_redirect(self, name: str) -> None:
        """Redirect to an invalid address or to itself."""
        self.head(302, 0, Location=BAD_LOCATIONS[int(name.removeprefix("redirect"))])

    def send_length(self, name: str) -> None:
        self.head(Content_Length="9" * 5_000)

    def send_cut(self, name: str) -> None:
        """Send half of the remaining content; ranges can request the rest."""
        content = self.mirror.content
        asked = self.headers.get("Range", "")
        if asked:
            self.mirror.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        more = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        self.head(206 if asked else 200, len(content) - start, Accept_Ranges="bytes", **more)
        self.wfile.write(content[start : start + len(content) // 2])

    def send_short(self, name: str) -> None:
        """Stop after 1,000 bytes; ranges are not supported."""
        self.head(size=len(self.mirror.content))
        self.wfile.write(self.mirror.content[:1000])

    def send_mute(self, name: str) -> None:
        self.mirror.released.wait(SILENCE_S)
        self.send_whole(name)

    def send_trickle(self, name: str) -> None:
        """Send an endless header line."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(10 * SILENCE_S):
            self.wfile.write(b"a")
            self.wfile.flush()
            if self.mirror.released.wait(0.1):
                break

    def send_endless(self, name: str) -> None:
        self.head()
        for _ in range(4_000):
            self.wfile.write(bytes(2**16))

    def send_bomb(self, name: str) -> None:
        content = ten_hours_of_silence()
        self.head(size=len(content))
        self.wfile.write(content)

    def send_page(self, name: str) -> None:
        page = b"<!DOCTYPE html><html><body>Please accept our terms</body></html>"
        self.head(size=len(page), kind="text/html")
        self.wfile.write(page)

    def send_liar(self, name: str) -> None:
        """Send media with the content type of a web page."""
        self.head(size=len(self.mirror.content), kind="text/html")
        self.wfile.write(self.mirror.content)

    def log_message(self, format: str, *args) -> None:
        pass
