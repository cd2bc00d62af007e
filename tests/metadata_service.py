"""Fake of the metadata services that AWS and Google Cloud run on each machine."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataService(ThreadingHTTPServer):
    """Fake metadata service of both clouds; answers notice requests with the statuses in `notices`, in order."""

    def __init__(self, notices: list[int]):
        super().__init__(("127.0.0.1", 0), MetadataHandler)
        self.notices = notices
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class MetadataHandler(BaseHTTPRequestHandler):
    server: MetadataService  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_PUT(self) -> None:
        has_ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
        self._answer(200 if self.path == "/latest/api/token" and has_ttl else 400, "secret")

    def do_GET(self) -> None:
        status = self.server.notices.pop(0) if len(self.server.notices) > 1 else self.server.notices[0]
        if self.path == "/latest/meta-data/spot/instance-action":
            is_allowed = self.headers.get("X-aws-ec2-metadata-token") == "secret"
            self._answer(status if is_allowed else 401, '{"action": "terminate", "time": "2026-11-25T08:22:00Z"}')
        elif self.path == "/computeMetadata/v1/instance/preempted" and self.headers.get("Metadata-Flavor") == "Google":
            # Google's service answers 200 with or without a notice; only the text differs.
            self._answer(500 if status == 500 else 200, "TRUE" if status == 200 else "FALSE")
        else:
            self._answer(403, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve_metadata() -> Iterator[MetadataService]:
    server = MetadataService([404])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
