"""A stand-in for a model and data-set hub on loopback: the routes that huggingface_hub's client asks, counted."""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "owner/copy"
COMMIT = hashlib.sha1(b"first").hexdigest()


@dataclass
class Hub:
    """A hub with one data set: the files of a folder."""

    folder: Path
    address: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by kind: `tree`, `paths-info`, `revision`, `resolve`."""
    num_bytes: int = 0
    """Bytes of files sent."""
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    """Status and headers of the next answer for a file; used once."""
    status: int = 200
    """Answer to every request: 401 for a gated repository."""

    def info(self, path: Path) -> dict:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = str(path.relative_to(self.folder))
        lfs = {"oid": digest, "size": len(content), "pointerSize": 130}
        return {"type": "file", "oid": digest[:40], "size": len(content), "path": name, "lfs": lfs}

    def tree(self, under: str) -> list[dict]:
        files = [path for path in sorted((self.folder / under).rglob("*")) if path.is_file()]
        return [self.info(path) for path in files]


class HubHandler(BaseHTTPRequestHandler):
    """Answers the client's requests."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_GET

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.hub.status != 200:
            return self.send(self.hub.status, b"{}", {"X-Error-Message": "Access to this dataset is restricted"})
        api = f"/api/datasets/{REPOSITORY}"
        if path.startswith(f"{api}/tree/"):
            self.hub.requests["tree"] += 1
            return self.send_json(self.hub.tree(path.removeprefix(f"{api}/tree/").partition("/")[2]))
        if path.startswith(f"{api}/paths-info/"):
            self.hub.requests["paths-info"] += 1
            wanted = json.loads(body)["paths"]
            return self.send_json(
                [self.hub.info(self.hub.folder / name) for name in wanted if (self.hub.folder / name).is_file()]
            )
        if path.startswith(api):
            self.hub.requests["revision"] += 1
            return self.send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        if path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            self.hub.requests["resolve"] += 1
            return self.send_file(path.removeprefix(f"/datasets/{REPOSITORY}/resolve/").partition("/")[2])
        return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def send_file(self, name: str) -> None:
        if refusal := self.hub.refusals.pop(name, None):
            return self.send(refusal[0], b"", refusal[1])
        content = (self.hub.folder / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        wanted, status = self.headers.get("Range"), 200
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content)) + bool(last), len(content))
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            content, status = content[int(first) : end], 206
        if self.command != "HEAD":
            self.hub.num_bytes += len(content)
        return self.send(status, content, headers)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


@contextmanager
def run_hub(folder: Path) -> Iterator[Hub]:
    """Serve a folder as the data set `owner/copy`."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
