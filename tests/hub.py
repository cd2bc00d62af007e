"""A stand-in for a model and data-set hub on loopback: the routes that huggingface_hub's client asks, counted."""

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "owner/copy"
FIRST, SECOND = (hashlib.sha1(name).hexdigest() for name in (b"first", b"second"))
"""Commits."""
TOKEN = "hf_tokenOfTheOnlyReader"


@dataclass
class Hub:
    """A hub with one data set: a folder of files for each commit."""

    folders: dict[str, Path]
    commit: str = FIRST
    """Commit of `main`."""
    is_gated: bool = False
    """Files, unlike their list, need `TOKEN`."""
    address: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    """Requests by kind: `tree`, `paths-info`, `revision`, `resolve`."""
    num_bytes: int = 0
    """Bytes of files sent."""
    refusals: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    """Status and headers of the next answer for a file; used once."""

    def folder_of(self, revision: str) -> Path:
        return self.folders[self.commit if revision == "main" else revision]

    def info(self, path: Path, folder: Path) -> dict:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = str(path.relative_to(folder))
        lfs = {"oid": digest, "size": len(content), "pointerSize": 130}
        return {"type": "file", "oid": digest[:40], "size": len(content), "path": name, "lfs": lfs}

    def tree(self, revision: str, under: str) -> list[dict]:
        folder = self.folder_of(revision)
        files = [path for path in sorted((folder / under).rglob("*")) if path.is_file()]
        return [self.info(path, folder) for path in files]


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
        api = f"/api/datasets/{REPOSITORY}"
        if path.startswith(f"{api}/tree/"):
            self.hub.requests["tree"] += 1
            revision, _, under = path.removeprefix(f"{api}/tree/").partition("/")
            return self.send_json(self.hub.tree(revision, under))
        if path.startswith(f"{api}/paths-info/"):
            self.hub.requests["paths-info"] += 1
            folder = self.hub.folder_of(path.removeprefix(f"{api}/paths-info/"))
            files = [folder / name for name in json.loads(body)["paths"]]
            return self.send_json([self.hub.info(file, folder) for file in files if file.is_file()])
        if path == api or path.startswith(f"{api}/revision/"):
            self.hub.requests["revision"] += 1
            revision = path.removeprefix(api).removeprefix("/revision/") or "main"
            sha = self.hub.commit if revision == "main" else revision
            return self.send_json({"id": REPOSITORY, "sha": sha, "siblings": []})
        if path.startswith(f"/datasets/{REPOSITORY}/resolve/"):
            self.hub.requests["resolve"] += 1
            revision, _, name = path.removeprefix(f"/datasets/{REPOSITORY}/resolve/").partition("/")
            return self.send_file(revision, name)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def send_file(self, revision: str, name: str) -> None:
        if refusal := self.hub.refusals.pop(name, None):
            return self.send(refusal[0], b"", refusal[1])
        if self.hub.is_gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            stated = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {REPOSITORY} is restricted"}
            return self.send(401, b"{}", stated)
        content = (self.hub.folder_of(revision) / name).read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.hub.commit}
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


class HubServer(ThreadingHTTPServer):
    """A server whose clients may leave in the middle of a file."""

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # pyright: ignore[reportArgumentType]


@contextmanager
def run_hub(folder: Path) -> Iterator[Hub]:
    """Serve a folder as the data set `owner/copy`."""
    hub = Hub({FIRST: folder})
    server = HubServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
