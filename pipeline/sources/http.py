"""Media from an HTTP address with the segment's fields filled in."""

import string
import threading
import time

import requests
import urllib3

from pipeline.config import FetchConfig
from pipeline.errors import ConfigError
from pipeline.records import Failure, Media, Reason, Segment

FIELDS = ("ytid", "start_ms", "end_ms", "split")
CHUNK_BYTES = 2**16
READ_TIMEOUT_S = 20.0
"""A socket that says nothing for so long is given up, even if the deadline is further away."""

REASON_OF_STATUS = {
    401: Reason.LOGIN_REQUIRED,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    408: Reason.TIMED_OUT,
    410: Reason.REMOVED,
    429: Reason.RATE_LIMITED,
    451: Reason.COUNTRY_BLOCKED,
}


class HttpSource:
    """Fetches `template` with {ytid}, {start_ms}, {end_ms} and {split} filled in."""

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
        self._local = threading.local()

    def __reduce__(self):
        return _reopen, (self.template, self.config, self.already_cut)

    @property
    def _session(self) -> requests.Session:
        """One per thread: requests does not promise that a session may be shared."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session

    def fetch(self, segment: Segment) -> Media | Failure:
        address = self.template.format(**{field: getattr(segment, field) for field in FIELDS})
        deadline = time.monotonic() + self.config.deadline_s
        timeout_s = min(READ_TIMEOUT_S, self.config.deadline_s)
        try:
            with self._session.get(address, stream=True, timeout=timeout_s) as response:
                if response.status_code != 200:
                    return _failure_of_status(response, address)
                content = self._read(response, deadline)
        except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
            return Failure(Reason.TIMED_OUT, f"{address}: {error}")
        except urllib3.exceptions.ProtocolError as error:
            return Failure(Reason.TRUNCATED, f"{address}: {error}")
        except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
            return Failure(Reason.CONNECTION, f"{address}: {error}")
        except requests.RequestException as error:
            return Failure(Reason.UNKNOWN, f"{address}: {type(error).__name__}: {error}")
        if isinstance(content, Failure):
            return content
        return Media(content, source=address, offset_ms=segment.start_ms if self.already_cut else 0)

    def _read(self, response: requests.Response, deadline: float) -> bytes | Failure:
        """Read the body as it comes, so that neither a trickle nor an endless stream outlives its limits."""
        declared = int(response.headers.get("Content-Length") or 0)
        content = bytearray()
        limit = self.config.max_media_bytes
        while declared <= limit and len(content) <= limit:
            if time.monotonic() > deadline:
                detail = f"{len(content)} bytes within {self.config.deadline_s} s"
                return Failure(Reason.TIMED_OUT, f"{response.url}: {detail}")
            chunk = response.raw.read1(CHUNK_BYTES, decode_content=True)
            if not chunk:
                return bytes(content)
            content += chunk
        found = max(declared, len(content))
        return Failure(Reason.TOO_LARGE, f"{response.url}: {found} bytes or more, the limit is {limit}")


def _reopen(template: str, config: FetchConfig, already_cut: bool) -> HttpSource:
    return HttpSource(template, config, already_cut=already_cut)


def _failure_of_status(response: requests.Response, address: str) -> Failure:
    status = response.status_code
    default = Reason.SERVER_ERROR if status >= 500 else Reason.UNKNOWN
    return Failure(REASON_OF_STATUS.get(status, default), f"{address}: HTTP {status} {response.reason}")
