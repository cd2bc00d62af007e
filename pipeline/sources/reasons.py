"""What a source's own words mean: HTTP statuses, yt-dlp's exceptions and YouTube's texts → reasons.

yt-dlp passes most of YouTube's causes on as text only (`playabilityStatus` in its `extractor/youtube/_video.py`), so
the text decides, then the exceptions below it. What is not recognised is `unknown`, which is looked at and retried.
"""

import re
from collections.abc import Iterator

from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, TransportError
from yt_dlp.utils import ContentTooShortError, GeoRestrictedError, UnsupportedError

from pipeline.records import Failure, Reason

REASON_OF_STATUS = {
    401: Reason.LOGIN_REQUIRED,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    408: Reason.TIMED_OUT,
    410: Reason.REMOVED,
    429: Reason.RATE_LIMITED,
    451: Reason.COUNTRY_BLOCKED,
}

REASON_OF_TEXT = [
    # Throttling first: it says nothing of the clip, and its hints mention signing in.
    (r"not a bot|captcha|unusual traffic", Reason.BOT_CHECK),
    (r"try again later|rate-limited|too many requests", Reason.RATE_LIMITED),
    (r"private video|video is private", Reason.PRIVATE),
    (r"account associated with this video has been terminated", Reason.ACCOUNT_TERMINATED),
    (r"account has been terminated|closed their youtube account", Reason.ACCOUNT_TERMINATED),
    # A claim that holds in one country only comes before claims that hold everywhere.
    (r"in your country|from your location|in your region", Reason.COUNTRY_BLOCKED),
    (r"copyright", Reason.COPYRIGHT),
    (r"has been removed|violat(es|ed|ing) youtube", Reason.REMOVED),
    (r"confirm your age|age-restricted|inappropriate for some users", Reason.AGE_RESTRICTED),
    (r"members-only|join this channel|members on level|premium members", Reason.LOGIN_REQUIRED),
    (r"requires payment|purchase", Reason.LOGIN_REQUIRED),
    (r"sign in|log ?in (required|details)|login required", Reason.LOGIN_REQUIRED),
    (r"drm protected", Reason.FORBIDDEN),
    # Not YouTube's bare "This content isn't available", which also comes when it throttles.
    (r"video (is )?(unavailable|not available)(?!.*this content isn't)", Reason.NOT_FOUND),
    (r"(isn't|is not|no longer) available any ?more|video is no longer available", Reason.NOT_FOUND),
    (r"incomplete youtube id|does not exist", Reason.NOT_FOUND),
    # The downloader passes the network's errors on as text too.
    (r"\d+ more expected|downloaded \d+ bytes, expected", Reason.TRUNCATED),
    (r"timed out", Reason.TIMED_OUT),
    (r"connection (reset|refused|aborted|broken)|getaddrinfo|remote end closed", Reason.CONNECTION),
]


def reason_of_status(status: int) -> Reason:
    """Read an HTTP status that is no success."""
    return REASON_OF_STATUS.get(status, Reason.SERVER_ERROR if status >= 500 else Reason.UNKNOWN)


def reason_of_text(text: str) -> Reason:
    """Read a message of YouTube or yt-dlp."""
    if status := re.search(r"HTTP Error (\d{3})", text):
        return reason_of_status(int(status[1]))
    text = text.replace("’", "'").lower()
    return next((reason for pattern, reason in REASON_OF_TEXT if re.search(pattern, text, re.DOTALL)), Reason.UNKNOWN)


def failure_of(error: BaseException) -> Failure:
    """Turn what yt-dlp raised into a failure, its message kept."""
    chain = list(_causes(error))
    detail = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).removeprefix("ERROR: ").strip()
    reasons = (_reason_of_exception(cause) for cause in chain)
    by_exception = next((reason for reason in reasons if reason), Reason.UNKNOWN)
    is_network = any(isinstance(cause, TransportError | HTTPError) for cause in chain)
    by_text = Reason.UNKNOWN if is_network else reason_of_text(detail)
    return Failure(by_exception if by_text is Reason.UNKNOWN else by_text, detail)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what lies below it: yt-dlp keeps that in `exc_info` or `cause`."""
    seen: set[int] = set()
    while isinstance(error, BaseException) and id(error) not in seen:
        yield error
        seen.add(id(error))
        exc_info = getattr(error, "exc_info", None)
        below = getattr(error, "cause", None) or (exc_info[1] if exc_info else None)
        error = below or error.__cause__ or error.__context__


def _reason_of_exception(error: BaseException) -> Reason | None:
    match error:
        case GeoRestrictedError():
            return Reason.COUNTRY_BLOCKED
        case UnsupportedError():
            return Reason.NOT_MEDIA
        case HTTPError(status=status):
            return reason_of_status(status)
        case IncompleteRead() | ContentTooShortError():
            return Reason.TRUNCATED
        case TimeoutError():
            return Reason.TIMED_OUT
        case TransportError():
            # Its cause, further down, may be a time-out.
            timed_out = any(isinstance(cause, TimeoutError) for cause in _causes(error))
            return Reason.TIMED_OUT if timed_out or "timed out" in str(error) else Reason.CONNECTION
    return None
