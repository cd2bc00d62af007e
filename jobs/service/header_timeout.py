"""A timeout for the headers of a request, first line included.

The gate bounds what comes after: an application is only called once the headers are complete. Neither uvicorn nor Ray
Serve has a setting for it, so Serve's proxy calls `install_header_timeout` before it listens, and takes uvicorn's
protocol as it stands then.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S = 20.0


class HeaderTimeoutProtocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it; a connection that is slow with its headers, or asks nothing, is answered with 408."""

    header_timeout_s = HEADER_TIMEOUT_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._start()

    def on_message_begin(self) -> None:
        self._start()  # of a request that follows another; how long it may stay away is bounded by uvicorn
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.header_timeout_s, self._refuse)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start()  # the request before this one is still being answered
            return
        content = json.dumps({"error": f"expected a request's headers within {self.header_timeout_s:g} s"})
        self.transport.write(
            f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
            f"connection: close\r\n\r\n{content}".encode()
        )
        self.transport.close()


def install_header_timeout() -> list[Any]:
    """Let uvicorn, in this process, have the timeout. Returns what Serve asks for: middlewares, none."""
    auto.AutoHTTPProtocol = HeaderTimeoutProtocol
    return []
