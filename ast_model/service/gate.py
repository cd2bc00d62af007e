"""ASGI middleware: access control and upload limits.

The middleware reads the whole body before the application sees the request. Wrong Content-Lengths, endless bodies and
slow uploads thus never reach a decoder. It counts the bytes of all uploads as they arrive.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from ast_model.service.limits import LOOPBACK, Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

RETRY_AFTER_S = 2
OPEN_PATHS = ("/", "/page.js", "/page.css", "/healthz")
"""Paths that need no token, because the page asks users for it and load balancers have none."""
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
}


class RefusedError(Exception):
    """Raised to refuse a request with a status and a message."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Gate:
    """Checks and reads each request before passing it to the application.

    token: required in the header `Authorization: Bearer`. Without a token, only requests to localhost pass, because
    other web pages can reach a loopback address under their own host name.
    """

    def __init__(self, app: App, limits: Limits, token: str = ""):
        self.app, self.limits, self.token = app, limits, token
        self.num_requests = 0
        """Number of complete uploads that are not answered yet."""
        self.num_bytes = 0
        """Total bytes of all complete and incomplete uploads."""
        self.num_refused = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await _reject_websocket(receive, send)
            return
        send = _with_headers(send, SECURITY_HEADERS)
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_sender(scope["path"], headers)
            if scope["method"] in ("GET", "HEAD", "OPTIONS"):
                await self.app(scope, receive, send)
            else:
                await self._pass_upload(scope, headers, receive, send)
        except RefusedError as refused:
            self.num_refused += 1
            await _answer(send, refused)

    def _check_sender(self, path: str, headers: MutableMapping[str, str]) -> None:
        host = headers.get("host", "")
        if self.token:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            # Compare bytes, because compare_digest accepts only ASCII strings.
            is_known = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if path not in OPEN_PATHS and not (is_known and scheme.lower() == "bearer"):
                raise RefusedError(
                    401,
                    "expected the header Authorization: Bearer TOKEN with this service's token",
                    **{"www-authenticate": "Bearer"},
                )
        elif _host_of(f"//{host}") not in LOOPBACK:
            raise RefusedError(403, "expected a request to localhost or 127.0.0.1: other host names need a token")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RefusedError(403, "expected a request from this service's own page or without an Origin header")

    async def _pass_upload(
        self, scope: MutableMapping[str, Any], headers: MutableMapping[str, str], receive: Receive, send: Send
    ) -> None:
        limits, body = self.limits, bytearray()
        _check_encoding(headers)
        try:
            if int(headers.get("content-length", 0)) > limits.max_mb * 1e6:
                raise _too_large(limits)
            try:
                async with asyncio.timeout(limits.upload_s):
                    if not await self._read_body(body, receive):
                        return  # the client disconnected
            except TimeoutError:
                raise RefusedError(408, f"expected the whole upload within {limits.upload_s:g} s") from None
            if self.num_requests >= limits.max_requests:
                raise _busy(f"{self.num_requests} requests are waiting")
            self.num_requests += 1
            try:
                await self.app(scope, _replay(bytes(body), receive), send)
            finally:
                self.num_requests -= 1
        finally:
            self.num_bytes -= len(body)

    async def _read_body(self, body: bytearray, receive: Receive) -> bool:
        """Append the body as it arrives; return False if the client disconnects early."""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            chunk = message.get("body", b"")
            body += chunk
            self.num_bytes += len(chunk)
            if len(body) > self.limits.max_mb * 1e6:
                raise _too_large(self.limits)
            if self.num_bytes > self.limits.max_total_mb * 1e6:
                raise _busy(f"uploads of {self.num_bytes / 1e6:.0f} MB are waiting")
            if not message.get("more_body", False):
                return True


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:  # the brackets contain no IPv6 address
        return None


def _check_encoding(headers: MutableMapping[str, str]) -> None:
    """Refuse forms and compressed bodies. Decoders skip unknown bytes, so they would tag even a form around an MP3."""
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        raise RefusedError(
            415,
            f"expected the file itself as the body, found the header Content-Type: {media_type}; with curl, replace -F"
            " by --data-binary @FILE",
            connection="close",
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise RefusedError(
            415,
            f"expected an uncompressed body, found the header Content-Encoding: {encoding[:40]}; send the file's bytes"
            " without it",
            connection="close",
            **{"accept-encoding": "identity"},
        )


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, f"expected at most {limits.max_mb:g} MB, found more", connection="close")


def _busy(why: str) -> RefusedError:
    return RefusedError(429, f"{why}: try again in {RETRY_AFTER_S} s", **{"retry-after": str(RETRY_AFTER_S)})


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that delivers the body once and then waits for the client to disconnect."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _with_headers(send: Send, headers: MutableMapping[str, str]) -> Send:
    added = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return send_with_headers


async def _reject_websocket(receive: Receive, send: Send) -> None:
    """Close the handshake, which makes servers answer with status 403 instead of 500."""
    await receive()
    await send({"type": "websocket.close", "code": 1008, "reason": "expected an HTTP request"})


async def _answer(send: Send, refused: RefusedError) -> None:
    content = json.dumps({"error": refused.sentence}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(content)), **refused.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})
