"""Recognise errors in which remote storage throttles requests or requires a login."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.copies.hub import HUB, login_advice
from pipeline.errors import SourceError
from pipeline.sources.http import parse_retry_after

UNAUTHORIZED, FORBIDDEN, TOO_MANY_REQUESTS, UNAVAILABLE = 401, 403, 429, 503


@dataclass(frozen=True, slots=True)
class Throttling:
    """A response that asks for a pause."""

    retry_after_s: float | None
    """Seconds to wait, or None if the server gives no time."""


def throttling_of(error: BaseException) -> Throttling | None:
    """Return the throttling that caused an error of a library, or None if the error has another cause.

    A 503 only counts if it has a `Retry-After` header, as for single clips.
    """
    for status, headers in _answers(error):
        wait_s = parse_retry_after(headers.get("Retry-After") or "")
        if status == TOO_MANY_REQUESTS or (status == UNAVAILABLE and wait_s is not None):
            return Throttling(wait_s)
    return None


def check_access(address: str, error: BaseException) -> None:
    """Raise SourceError, with advice, if the error means that the address requires a login or another account."""
    for status, headers in _answers(error):
        if status not in (UNAUTHORIZED, FORBIDDEN):
            continue
        # Only quote this header, which the hub sets. The messages of libraries would reveal signed addresses.
        stated = f" ({headers['X-Error-Message'][:200]})" if headers.get("X-Error-Message") else ""
        advice = login_advice(address) if address.startswith(HUB) else "check the credentials of this storage"
        raise SourceError(
            f"expected access to {address}, found HTTP {status}{stated}: {advice}; finished clips are stored"
        ) from error


def _answers(error: BaseException) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield the status and headers of the HTTP responses that caused an error. fsspec often reports them as missing
    files."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        answer: Any = getattr(cause, "response", cause)  # the hub's client; aiohttp's errors have both fields
        if isinstance(answer, dict):  # botocore
            answer = answer.get("ResponseMetadata") or {}
            yield answer.get("HTTPStatusCode", 0), _titled(answer.get("HTTPHeaders") or {})
        else:
            status = getattr(answer, "status_code", None) or getattr(answer, "status", None)
            if isinstance(status, int):
                yield status, getattr(answer, "headers", None) or {}
        cause = cause.__cause__ or cause.__context__


def _titled(headers: Mapping[str, str]) -> dict[str, str]:
    """Restore the usual capitalisation of headers such as `Retry-After`, which botocore converts to lower case."""
    return {name.title(): value for name, value in headers.items()}
