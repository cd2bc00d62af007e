"""Media from an HTTP address with the segment's fields filled in."""

import queue
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

import requests
import urllib3

from pipeline.config import FetchConfig
from pipeline.errors import ConfigError
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.reasons import reason_of_status

FIELDS = ("ytid", "start_ms", "end_ms", "split")
CHUNK_BYTES = 2**16
READ_TIMEOUT_S = 20.0
"""A socket that says nothing for so long is given up, even if the deadline is further away."""
PARTIAL_CONTENT = 206


class HttpSource:
    """Fetches `template` with {ytid}, {start_ms}, {end_ms} and {split} filled in.

    A body that breaks off is taken up where it broke off if the server allows ranges.
    """

    def __init__(self, template: str, config: FetchConfig, *, already_cut: bool = False):
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        if not fields <= set(FIELDS) or "ytid" not in fields:
            raise ConfigError(
                f"expected an address with {{ytid}} and perhaps {{start_ms}}, {{end_ms}} or {{split}} in it,"
                f" such as http://mirror/{{ytid}}.webm, found {template!r}"
            )
        self.template = template
        self.config = config
        self.already_cut = already_cut
        self._idle: queue.SimpleQueue[requests.Session] = queue.SimpleQueue()

    def __reduce__(self):
        return _reopen, (self.template, self.config, self.already_cut)

    @contextmanager
    def _session(self) -> Iterator[requests.Session]:
        """Lend a session: requests does not promise that one may be shared by threads."""
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = requests.Session()
        try:
            yield session
        finally:
            self._idle.put(session)

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        address = self.template.format(**{field: getattr(segment, field) for field in FIELDS})
        content = bytearray()
        deadline = time.monotonic() + self.config.deadline_s
        while True:
            num_before = len(content)
            failure, can_go_on = self._read(address, content, deadline, proxy)
            if failure is None:
                break
            if failure.reason is not Reason.TRUNCATED or not can_go_on or len(content) == num_before:
                return failure
        return Media(bytes(content), source=address, offset_ms=segment.start_ms if self.already_cut else 0)

    def _read(
        self, address: str, content: bytearray, deadline: float, proxy: str | None
    ) -> tuple[Failure | None, bool]:
        """Read the body, or what is missing of it; tell what went wrong and whether the rest can be asked for."""
        # Compressed bodies have no ranges, and hide their size.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={len(content)}-"} if content else {})
        proxies = {"http": proxy, "https": proxy} if proxy else None
        timeout_s = max(0.01, min(READ_TIMEOUT_S, deadline - time.monotonic()))
        can_go_on = False
        try:
            with (
                self._session() as session,
                session.get(address, stream=True, timeout=timeout_s, headers=headers, proxies=proxies) as response,
            ):
                if response.status_code != (PARTIAL_CONTENT if content else 200):
                    return _refusal(address, response), False
                can_go_on = "bytes" in response.headers.get("Accept-Ranges", "")
                return self._read_body(response, content, deadline), can_go_on
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            return Failure(Reason.TIMED_OUT, f"{address}: {error}"), False
        except urllib3.exceptions.ProtocolError as error:
            return Failure(Reason.TRUNCATED, f"{address}: {error}"), can_go_on
        except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
            return Failure(Reason.CONNECTION, f"{address}: {error}"), False
        except requests.RequestException as error:
            return Failure(Reason.UNKNOWN, f"{address}: {type(error).__name__}: {error}"), False

    def _read_body(self, response: requests.Response, content: bytearray, deadline: float) -> Failure | None:
        """Read the body as it comes, so that neither a trickle nor an endless stream outlives its limits."""
        stated = response.headers.get("Content-Length", "")
        expected = len(content) + (int(stated) if stated.isdecimal() else 0)
        limit = self.config.max_media_bytes
        while max(expected, len(content)) <= limit:
            if time.monotonic() > deadline:
                detail = f"{len(content)} bytes within {self.config.deadline_s} s"
                return Failure(Reason.TIMED_OUT, f"{response.url}: {detail}")
            chunk = response.raw.read1(CHUNK_BYTES, decode_content=True)
            if not chunk:
                return None
            content += chunk
        found = max(expected, len(content))
        return Failure(Reason.TOO_LARGE, f"{response.url}: {found} bytes or more, the limit is {limit}")


def _refusal(address: str, response: requests.Response) -> Failure:
    """Read an answer that is no success. One that says when to come again asks for patience, also if it is a 503."""
    status = response.status_code
    wait_s = _seconds_of(response.headers.get("Retry-After", "")) if status in (429, 503) else None
    reason = reason_of_status(status) if wait_s is None else Reason.RATE_LIMITED
    return Failure(reason, f"{address}: HTTP {status} {response.reason}", wait_s)


def _seconds_of(retry_after: str) -> float | None:
    """Read a `Retry-After` header: seconds, or a date; None if it is neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _reopen(template: str, config: FetchConfig, already_cut: bool) -> HttpSource:
    return HttpSource(template, config, already_cut=already_cut)
