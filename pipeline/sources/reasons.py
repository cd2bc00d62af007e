"""Failure reasons for HTTP statuses, yt-dlp's exceptions and YouTube's messages.

yt-dlp passes most of YouTube's causes on as text only (`playabilityStatus` in its `extractor/youtube/_video.py`), so
the text decides, then the exceptions below it. What is not recognised is `unknown`: it is retried, and its number in
the report shows when YouTube has found new words.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence

from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, TransportError
from yt_dlp.utils import ContentTooShortError, GeoRestrictedError, UnsupportedError

from pipeline.errors import MAX_QUOTED_CHARS, AudioTaggingError, ConfigError, StoreError
from pipeline.records import Failure, FailureCategory, Reason

REASON_OF_STATUS = {
    401: Reason.LOGIN_REQUIRED,
    403: Reason.FORBIDDEN,
    404: Reason.NOT_FOUND,
    408: Reason.TIMED_OUT,
    410: Reason.REMOVED,
    429: Reason.RATE_LIMITED,
    451: Reason.COUNTRY_BLOCKED,
}

# YouTube says in a page with status 200 that a video is gone. Its error statuses are about the request: a 403 mostly
# means that the address or the client is refused for a while, a 404 or 410 that a media address has expired.
YOUTUBE_REASON_OF_STATUS = REASON_OF_STATUS | {
    400: Reason.EXTRACTION_FAILED,
    403: Reason.BLOCKED,
    404: Reason.SERVER_ERROR,
    410: Reason.SERVER_ERROR,
    416: Reason.TRUNCATED,
}

# The first pattern that is found decides, so what is narrower stands before what is wider.
REASON_OF_TEXT = [
    # Throttling first: it says nothing of the clip, and its hints mention signing in.
    (r"not a bot|captcha|unusual traffic", Reason.BOT_CHECK),
    (r"ip is likely being blocked", Reason.BLOCKED),
    (r"error occurred|something went wrong|unknown error|incomplete data received", Reason.SERVER_ERROR),
    (r"try again later|rate-limited|too many requests", Reason.RATE_LIMITED),
    (r"premieres? (in|will)|will begin|check back later|still being processed", Reason.NOT_READY),
    # These depend on the player client that yt-dlp pretends to be. They mention owners and blocking, so they stand
    # before copyright and before "video unavailable".
    (r"playback on other websites|display on this website|player configuration error", Reason.CLIENT_REFUSED),
    (r"(un|not )available on this (device|app)|no longer supported in this", Reason.CLIENT_REFUSED),
    (r"latest version of youtube|drm protected", Reason.CLIENT_REFUSED),
    (r"require a gvs po token|missing a url", Reason.CLIENT_REFUSED),
    (r"private video|video is private", Reason.PRIVATE),
    (r"account associated with this video has been terminated", Reason.ACCOUNT_TERMINATED),
    (r"account has been (terminated|suspended)|closed their youtube account", Reason.ACCOUNT_TERMINATED),
    # A claim that holds in one country only comes before claims that hold everywhere.
    (r"in your country|from your location|in your region|country domain", Reason.COUNTRY_BLOCKED),
    (r"copyright|trademark|counterfeit", Reason.COPYRIGHT),
    (r"has been removed|violat(es|ed|ing) youtube|legal complaint|court order", Reason.REMOVED),
    (r"confirm your age|age-restricted|inappropriate|viewer discretion|self-harm", Reason.AGE_RESTRICTED),
    (r"members-only|join this channel|members on level|premium members|youtube premium", Reason.LOGIN_REQUIRED),
    (r"requires payment|purchase|registered users", Reason.LOGIN_REQUIRED),
    (r"sign in|log ?in (required|details)|login required|caller does not have permission", Reason.LOGIN_REQUIRED),
    (r"network administrator", Reason.FORBIDDEN),
    # Not YouTube's bare "This content isn't available", which also comes when it throttles.
    (r"video (is )?(unavailable|not available)(?!.*this content isn't)", Reason.NOT_FOUND),
    (r"(isn't|is not|no longer) available any ?more|video is no longer available", Reason.NOT_FOUND),
    (r"live event has ended|recording is not available", Reason.NOT_FOUND),
    (r"incomplete youtube id|does not exist", Reason.NOT_FOUND),
    # The downloader passes the network's errors on as text, too.
    (r"\d+ more expected|downloaded \d+ bytes, expected|content too short|conflicting range", Reason.TRUNCATED),
    (r"fragment \d+ not found|file is empty|any data blocks", Reason.TRUNCATED),
    (r"timed out", Reason.TIMED_OUT),
    (r"connection (reset|refused|aborted|broken)|getaddrinfo|remote end closed", Reason.CONNECTION),
    # yt-dlp did not understand YouTube, which mostly means that a newer version does.
    (r"(failed|unable) to (extract|parse)|cannot (identify player|extract)|please report this issue|"
     r"no video formats found|requested format is not available|page needs to be reloaded|"
     r"precondition check failed|invalid argument|live dash videos|initialization fragment", Reason.EXTRACTION_FAILED),
]  # fmt: skip

NOT_UNDERSTOOD = (Reason.UNKNOWN, Reason.EXTRACTION_FAILED)

# Every other clip would fail in the same way, so the run ends and a person repairs this.
RUN_ERROR_OF_TEXT: list[tuple[str, type[AudioTaggingError], str]] = [
    (
        r"407 proxy auth|HTTP Error 407|invalid password|authentication methods were rejected",
        ConfigError,
        "the proxy refuses the user or the password; correct them in the file of --fetch.proxies",
    ),
    (
        r"certificate[ _]verify[ _]failed",
        ConfigError,
        "the server's certificate can't be verified; check this machine's clock, and whether a proxy inspects TLS",
    ),
    (
        r"no space left on device|disk quota exceeded|read-only file system|unable to (write data|open for writing)",
        StoreError,
        f"yt-dlp can't write to {tempfile.gettempdir()}; free space there, or name another folder in TMPDIR",
    ),
    (
        r"no player clients have been requested",
        ConfigError,
        "no player client is left; correct --youtube.clients, or leave it out",
    ),
    (
        r"no supported javascript runtime",
        ConfigError,
        "this node has no JavaScript runtime for yt-dlp; install one with: pip install deno",
    ),
]


def excerpt(text: object) -> str:
    """Return the beginning of a foreign message as it is, for a clip's detail, without a terminal's colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(text)).strip()
    return plain if len(plain) <= MAX_QUOTED_CHARS else plain[: MAX_QUOTED_CHARS - 1] + "…"


def reason_of_status(status: int, reasons: dict[int, Reason] = REASON_OF_STATUS) -> Reason:
    """Classify an unsuccessful HTTP status."""
    # A 3xx arrives here only from a redirect that leads nowhere or in a circle.
    is_servers = status >= 500 or 300 <= status < 400
    return reasons.get(status, Reason.SERVER_ERROR if is_servers else Reason.UNKNOWN)


def reason_of_text(text: str) -> Reason:
    """Classify a message of YouTube or yt-dlp."""
    # Not the warning that formats without a PO token "may yield HTTP Error 403".
    if status := re.search(r"(?<!yield )HTTP Error (\d{3})", text):
        return reason_of_status(int(status[1]), YOUTUBE_REASON_OF_STATUS)
    text = text.replace("’", "'").lower()
    return next((reason for pattern, reason in REASON_OF_TEXT if re.search(pattern, text, re.DOTALL)), Reason.UNKNOWN)


def failure_of(error: BaseException, warnings: Sequence[str] = ()) -> Failure:
    """Classify what yt-dlp raised, after the warnings that led to it.

    Raises ConfigError or StoreError if the run is at fault, not the clip.
    """
    chain = list(_causes(error))
    _raise_run_error([*map(str, chain), *warnings])
    detail = excerpt(error).removeprefix("ERROR:").strip()
    by_exception = next((reason for reason in map(_reason_of_exception, chain) if reason), Reason.UNKNOWN)
    is_network = any(isinstance(cause, TransportError | HTTPError) for cause in chain)
    by_text = Reason.UNKNOWN if is_network else reason_of_text(str(error))
    reason = by_exception if by_text is Reason.UNKNOWN else by_text
    if reason not in NOT_UNDERSTOOD:
        return Failure(reason, detail)
    # yt-dlp asks several clients and warns why each one failed; its error only says that none is left.
    causes = [(reason_of_text(warning), warning) for warning in warnings]
    causes = [(cause, warning) for cause, warning in causes if cause not in NOT_UNDERSTOOD]
    # An address that is throttled must pause, whatever else went wrong.
    causes.sort(key=lambda pair: pair[0].category is not FailureCategory.THROTTLED)
    return Failure(causes[0][0], f"{detail} ({excerpt(causes[0][1])})") if causes else Failure(reason, detail)


def _raise_run_error(messages: Sequence[str]) -> None:
    for message in messages:
        for pattern, error_type, advice in RUN_ERROR_OF_TEXT:
            if re.search(pattern, message, re.IGNORECASE):
                raise error_type(f"{advice}. The error was: {excerpt(message)}")


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
            return reason_of_status(status, YOUTUBE_REASON_OF_STATUS)
        case IncompleteRead() | ContentTooShortError():
            return Reason.TRUNCATED
        case TimeoutError():
            return Reason.TIMED_OUT
        case TransportError():
            # Its cause, further down, may be a time-out.
            timed_out = any(isinstance(cause, TimeoutError) for cause in _causes(error))
            return Reason.TIMED_OUT if timed_out or "timed out" in str(error) else Reason.CONNECTION
    return None
