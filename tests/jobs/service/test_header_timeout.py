"""A real server refuses slow headers and serves all other requests."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
import uvicorn

from jobs.service.header_timeout import HeaderTimeoutProtocol

TIMEOUT_S = 0.5
SLOW = b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Impatient(HeaderTimeoutProtocol):
    header_timeout_s = TIMEOUT_S


async def application(scope: Any, receive: Any, send: Any) -> None:
    path = scope["path"].encode()
    await asyncio.sleep(3 * TIMEOUT_S if path == b"/slow" else 0)
    headers = [(b"content-length", str(len(path)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": path})


async def read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    blocks: list[bytes] = []
    with contextlib.suppress(ConnectionResetError):  # how a connection ends if a piece crosses the refusal
        while block := await reader.read(4096):
            blocks.append(block)
    return b"".join(blocks)


async def ask(port: int, *pieces: bytes) -> list[bytes]:
    """Send a request in pieces, two per timeout, and return the first and the last line of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.create_task(read_to_the_end(reader))
    for piece in pieces:
        writer.write(piece)
        await asyncio.wait([answer], timeout=TIMEOUT_S / 2)
        if answer.done():
            break
    lines = (await answer).split(b"\r\n")
    writer.close()
    return [lines[0], lines[-1]]


@pytest.mark.slow
def test_slow_headers_are_refused_and_other_requests_served() -> None:
    async def run() -> None:
        server = uvicorn.Server(uvicorn.Config(application, port=0, http=Impatient, lifespan="off", log_level="error"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        dripping = [CLOSING[index : index + 1] for index in range(len(CLOSING))]
        answers = await asyncio.gather(
            ask(port, CLOSING),
            ask(port, *dripping),
            ask(port),  # nothing at all
            ask(port, SLOW, CLOSING[:9], b"", b"", CLOSING[9:]),  # the second is begun while the first is answered
            ask(port, SLOW, *dripping),
        )
        server.should_exit = True
        await serving
        refusal = json.dumps({"error": f"expected a request's headers within {TIMEOUT_S} s"}).encode()
        refused = [b"HTTP/1.1 408 Request Timeout", refusal]
        served = [b"HTTP/1.1 200 OK", b"/"]
        assert answers == [served, refused, refused, served, [served[0], refusal]]

    asyncio.run(run())
