"""Limit the time in which the headers of a request must arrive.

Servers call an application only after the headers are complete, so the middleware can limit only the body. Neither
uvicorn nor Ray Serve has a setting for slow headers. Serve's proxy therefore calls `install_header_timeout`, which
replaces uvicorn's protocol before the proxy listens.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S = 20.0


class HeaderTimeoutProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which answers slow headers and idle new connections with status 408."""

    header_timeout_s = HEADER_TIMEOUT_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._start()

    def on_message_begin(self) -> None:
        self._start()  # for the next request on the connection; uvicorn itself limits the idle time before it
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
            self._start()  # the previous request is still in progress
            return
        content = json.dumps({"error": f"expected a request's headers within {self.header_timeout_s:g} s"})
        self.transport.write(
            f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n"
            f"connection: close\r\n\r\n{content}".encode()
        )
        self.transport.close()


def install_header_timeout() -> list[Any]:
    """Install the timeout in this process's uvicorn. Serve requires a list of middlewares, which is empty."""
    auto.AutoHTTPProtocol = HeaderTimeoutProtocol
    return []
