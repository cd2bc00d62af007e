"""Fetch media over HTTP, from addresses that are built from a template."""

import queue
import string
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import requests
import urllib3

from pipeline.config import FetchConfig
from pipeline.errors import ConfigError, describe
from pipeline.records import Failure, Media, Reason, Segment
from pipeline.sources.proxies import host_of
from pipeline.sources.reasons import excerpt, reason_of_status

FIELDS = ("ytid", "start_ms", "end_ms", "split")
CHUNK_BYTES = 2**16
READ_TIMEOUT_S = 20.0
"""Longest time in seconds to wait for the next byte. It is usually shorter than the deadline of an attempt."""
MAX_RETRY_AFTER_S = 24 * 3600.0
MAX_LENGTH_DIGITS = 18
PARTIAL_CONTENT = 206
PROXY_AUTHENTICATION_REQUIRED = 407


class HttpSource:
    """A source of media at HTTP addresses. The template can contain {ytid}, {start_ms}, {end_ms} and {split}.

    If a transfer is interrupted, it is resumed, provided that the server supports ranges.
    """

    def __init__(self, template: str, config: FetchConfig, *, already_cut: bool = False):
        if not _is_template(template):
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
        """Borrow a session for the calling thread, because requests does not guarantee that sessions are
        thread-safe."""
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = requests.Session()
        try:
            yield session
        finally:
            self._idle.put(session)

    def fetch(self, segment: Segment, proxy: str | None = None) -> Media | Failure:
        """Fetch a file. Raises ConfigError if a proxy rejects the credentials or the server's certificate is
        invalid."""
        address = self.template.format(**{field: getattr(segment, field) for field in FIELDS})
        content = bytearray()
        deadline = time.monotonic() + self.config.deadline_s
        while True:
            num_before = len(content)
            failure, can_resume = self._read(address, content, deadline, proxy)
            if failure is None:
                break
            if failure.reason is not Reason.TRUNCATED or not can_resume or len(content) == num_before:
                return failure
        return Media(bytes(content), source=address, offset_ms=segment.start_ms if self.already_cut else 0)

    def _read(
        self, address: str, content: bytearray, deadline: float, proxy: str | None
    ) -> tuple[Failure | None, bool]:
        """Append the body, or the part of it that is missing. Returns a failure or None, and whether another request
        can resume."""
        # Ask for an uncompressed body, because compressed bodies do not support ranges and hide their size.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={len(content)}-"} if content else {})
        proxies = {"http": proxy, "https": proxy} if proxy else None
        timeout_s = max(0.01, min(READ_TIMEOUT_S, deadline - time.monotonic()))
        can_resume = False
        try:
            with (
                self._session() as session,
                session.get(address, stream=True, timeout=timeout_s, headers=headers, proxies=proxies) as response,
            ):
                if response.status_code == PROXY_AUTHENTICATION_REQUIRED and proxy:
                    raise _proxy_refusal(proxy)
                if response.status_code != (PARTIAL_CONTENT if content else 200):
                    return _refusal(address, response), False
                can_resume = "bytes" in response.headers.get("Accept-Ranges", "")
                return self._read_body(response, content, deadline), can_resume
        except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
            if proxy and f"{PROXY_AUTHENTICATION_REQUIRED} Proxy" in str(error):
                raise _proxy_refusal(proxy) from error
            if "CERTIFICATE_VERIFY_FAILED" in str(error) and _is_about_host_of(address, error):
                raise ConfigError(
                    f"{address}: the server's certificate can't be verified; check this machine's clock, and whether a"
                    f" proxy inspects TLS. The error was: {describe(error)}"
                ) from error
            reason = _reason_of_exception(error)
            return Failure(reason, f"{address}: {_describe(error)}"), can_resume

    def _read_body(self, response: requests.Response, content: bytearray, deadline: float) -> Failure | None:
        """Read the body in chunks, so that slow or endless responses end at the deadline or at the size limit."""
        expected = len(content) + parse_content_length(response.headers.get("Content-Length", ""))
        limit = self.config.max_media_bytes
        while max(expected, len(content)) <= limit:
            if time.monotonic() > deadline:
                detail = f"{len(content)} bytes within {self.config.deadline_s} s"
                return Failure(Reason.TIMED_OUT, f"{excerpt(response.url)}: {detail}")
            chunk = response.raw.read1(CHUNK_BYTES, decode_content=True)
            if not chunk:
                return None
            content += chunk
        found = max(expected, len(content))
        return Failure(Reason.TOO_LARGE, f"{excerpt(response.url)}: {found} bytes or more, the limit is {limit}")


def parse_content_length(value: str) -> int:
    """Return the value of a `Content-Length` header, or 0 if it is missing or invalid."""
    # Limit the number of digits, because Python refuses to parse thousands of them.
    digits = value.strip()[:MAX_LENGTH_DIGITS]
    return int(digits) if digits.isascii() and digits.isdecimal() else 0


def parse_retry_after(value: str) -> float | None:
    """Return how many seconds a `Retry-After` header says to wait, as a number or a date; None for other values."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        wait_s = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, wait_s), MAX_RETRY_AFTER_S)


def _refusal(address: str, response: requests.Response) -> Failure:
    """Classify an unsuccessful response. A 503 with `Retry-After` counts as throttling, just like a 429."""
    status = response.status_code
    wait_s = parse_retry_after(response.headers.get("Retry-After", "")) if status in (429, 503) else None
    reason = reason_of_status(status) if wait_s is None else Reason.RATE_LIMITED
    return Failure(reason, f"{address}: HTTP {status} {excerpt(response.reason)}", wait_s)


def _proxy_refusal(proxy: str) -> ConfigError:
    return ConfigError(
        f"the proxy {host_of(proxy)} refuses the user or the password; correct them in the file of --fetch.proxies"
    )


def _is_about_host_of(address: str, error: Exception) -> bool:
    """Return True if an error concerns the host of the address itself, and not a host that it redirected to."""
    request = getattr(error, "request", None)
    return request is not None and urlsplit(request.url).netloc == urlsplit(address).netloc


def _describe(error: Exception) -> str:
    """Describe the cause of an error, such as "Connection refused", without the details that requests adds."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    return describe(cause if isinstance(cause, Exception) else error)


def _reason_of_exception(error: Exception) -> Reason:
    match error:
        case ValueError():  # Python's URL parser raises this for a redirect to an invalid address
            return Reason.UNKNOWN
        case requests.Timeout() | urllib3.exceptions.TimeoutError():
            return Reason.TIMED_OUT
        case urllib3.exceptions.ProtocolError():
            return Reason.TRUNCATED
        case requests.ConnectionError() | urllib3.exceptions.HTTPError():
            return Reason.CONNECTION
        case requests.TooManyRedirects():
            return Reason.SERVER_ERROR
    return Reason.UNKNOWN


def _is_template(text: str) -> bool:
    """Return True if a template contains {ytid} and no unknown fields."""
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}
        text.format(ytid="", start_ms=0, end_ms=0, split="")  # raises if a format is invalid, such as {ytid:d}
    except (ValueError, LookupError, AttributeError):
        return False
    return fields <= set(FIELDS) and "ytid" in fields


def _reopen(template: str, config: FetchConfig, already_cut: bool) -> HttpSource:
    return HttpSource(template, config, already_cut=already_cut)
