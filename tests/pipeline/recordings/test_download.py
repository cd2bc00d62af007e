import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import CorruptError, InputError, StoreError
from pipeline.recordings import download
from pipeline.recordings.download import fetch_archive, unpack

CONTENT = np.random.default_rng(0).bytes(5_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """A server of CONTENT: `/cut` interrupts each response, `/plain` ignores ranges, `/dead` sends no body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_GET(self) -> None:
        wanted = self.headers["Range"] if self.path != "/plain" else None
        self.server.ranges.append(wanted)
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/latin1":
            self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: http://[::\xe9/\r\nContent-Length: 0\r\n\r\n")
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", "9" * 5_000 if self.path == "/digits" else str(len(CONTENT) - start))
        self.end_headers()
        num_bytes = {"/cut": 2_000_000, "/dead": 0, "/digits": 0}.get(self.path, len(CONTENT))
        self.wfile.write(CONTENT[start : start + num_bytes])

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_interrupted_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    file = fetch_archive(f"{server.address}/cut", tmp_path / "a", DIGEST)
    assert file.read_bytes() == CONTENT
    first, *others = server.ranges
    starts = [int(str(each).removeprefix("bytes=").rstrip("-")) for each in others]
    assert first is None
    assert starts == pytest.approx(
        [2_000_000, 4_000_000], abs=2 * download.CHUNK_BYTES
    )  # an interrupted chunk may be lost
    fetch_archive(f"{server.address}/cut", tmp_path / "a", DIGEST)
    assert len(server.ranges) == 3  # a complete file causes no request


def test_killed_download_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(CONTENT[:3_000_000])
    assert fetch_archive(f"{server.address}/whole", tmp_path / "a", DIGEST).read_bytes() == CONTENT
    assert server.ranges == ["bytes=3000000-"]


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"old")
    assert fetch_archive(f"{server.address}/plain", tmp_path / "a", DIGEST).read_bytes() == CONTENT


def test_wrong_digest_removes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"expected the digest 0+, found [0-9a-f]{64}"):
        fetch_archive(f"{server.address}/whole", tmp_path / "a", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_silent_server_is_reported(server: Server, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="sends nothing more after 0 bytes"):
        fetch_archive(f"{server.address}/dead", tmp_path / "a", DIGEST)
    with pytest.raises(InputError, match="HTTP 404"):
        fetch_archive(f"{server.address}/missing", tmp_path / "a", DIGEST)


@pytest.mark.slow
def test_impossible_headers_are_tolerated(server: Server, tmp_path: Path) -> None:
    for path in ("/digits", "/latin1"):
        with pytest.raises(StoreError, match="sends nothing more"):
            fetch_archive(f"{server.address}{path}", tmp_path / "a", DIGEST)


def test_archive_is_unpacked_once_and_completely(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("folder/file", "text")
    (tmp_path / "a.zip").write_bytes(content.getvalue())
    folder = unpack(tmp_path / "a.zip", tmp_path / "a")
    assert (folder / "folder" / "file").read_text() == "text"
    (tmp_path / "a.zip").unlink()
    unpack(tmp_path / "a.zip", tmp_path / "a")
    (tmp_path / "b.zip").write_bytes(content.getvalue()[:40])
    with pytest.raises(CorruptError, match=r"can't unpack .*b\.zip"):
        unpack(tmp_path / "b.zip", tmp_path / "b")
