"""Classify HTTP statuses, yt-dlp's exceptions and YouTube's messages as reasons for failures.

yt-dlp reports most of YouTube's reasons only as text (`playabilityStatus` in its `extractor/youtube/_video.py`).
Therefore the text is matched first, and the chained exceptions second. Unknown messages are classified as `unknown` and
retried. The report counts them, which shows when YouTube changes its messages.
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

# For missing videos, YouTube sends a page with status 200. Error statuses concern the request instead. 403 usually
# means that YouTube refuses the address or the client for a while. 404 and 410 mean that the address of the media has
# expired.
YOUTUBE_REASON_OF_STATUS = REASON_OF_STATUS | {
    400: Reason.EXTRACTION_FAILED,
    403: Reason.BLOCKED,
    404: Reason.SERVER_ERROR,
    410: Reason.SERVER_ERROR,
    416: Reason.TRUNCATED,
}

# The first pattern that matches decides, so specific patterns come before general patterns.
REASON_OF_TEXT = [
    # Throttling comes first, because its messages also ask the user to sign in.
    (r"not a bot|captcha|unusual traffic", Reason.BOT_CHECK),
    (r"ip is likely being blocked", Reason.BLOCKED),
    (r"error occurred|something went wrong|unknown error|incomplete data received", Reason.SERVER_ERROR),
    (r"try again later|rate-limited|too many requests", Reason.RATE_LIMITED),
    (r"premieres? (in|will)|will begin|check back later|still being processed|\boffline\b", Reason.NOT_READY),
    # These messages depend on the player client that yt-dlp imitates. They mention owners and blocking, so they must
    # come before the patterns for copyright and "video unavailable".
    (r"playback on other websites|display on this website|player configuration error", Reason.CLIENT_REFUSED),
    (r"(un|not )available on this (device|app)|no longer supported in this", Reason.CLIENT_REFUSED),
    (r"latest version of youtube|drm protected", Reason.CLIENT_REFUSED),
    (r"require a gvs po token|missing a url", Reason.CLIENT_REFUSED),
    (r"private video|video is private", Reason.PRIVATE),
    (r"account associated with this video has been terminated", Reason.ACCOUNT_TERMINATED),
    (r"account has been (terminated|suspended)|closed their youtube account", Reason.ACCOUNT_TERMINATED),
    # Claims in a single country must come before worldwide claims.
    (r"in your country|from your location|in your region|country domain", Reason.COUNTRY_BLOCKED),
    (r"uploader has not made this video available", Reason.COUNTRY_BLOCKED),
    (r"copyright|trademark|counterfeit", Reason.COPYRIGHT),
    (r"has been removed|violat(es|ed|ing) youtube|legal complaint|court order", Reason.REMOVED),
    (r"confirm your age|age-restricted|inappropriate|viewer discretion|self-harm", Reason.AGE_RESTRICTED),
    (r"members-only|join this channel|members on level|premium members|youtube premium", Reason.LOGIN_REQUIRED),
    (r"requires payment|purchase|registered users", Reason.LOGIN_REQUIRED),
    (r"sign in|log ?in (required|details)|login required|caller does not have permission", Reason.LOGIN_REQUIRED),
    (r"network administrator", Reason.FORBIDDEN),
    # Exclude the bare message "This content isn't available", because YouTube also sends it when it throttles.
    (r"video (is )?(unavailable|not available)(?!.*this content isn't)", Reason.NOT_FOUND),
    (r"(isn't|is not|no longer) available any ?more|video is no longer available", Reason.NOT_FOUND),
    (r"live event has ended|recording is not available", Reason.NOT_FOUND),
    (r"incomplete youtube id|does not exist", Reason.NOT_FOUND),
    # yt-dlp's downloader reports network errors as text.
    (r"\d+ more expected|downloaded \d+ bytes, expected|content too short|conflicting range", Reason.TRUNCATED),
    (r"fragment \d+ not found|file is empty|any data blocks", Reason.TRUNCATED),
    (r"timed out", Reason.TIMED_OUT),
    (r"connection (reset|refused|aborted|broken)|getaddrinfo|remote end closed", Reason.CONNECTION),
    (r"name resolution|name or service not known|failed to resolve|no address associated|nodename nor servname|"
     r"network is unreachable|no route to host", Reason.CONNECTION),
    # yt-dlp did not understand YouTube's response. A newer version usually does.
    (r"(failed|unable) to (extract|parse)|cannot (identify player|extract)|please report this issue|"
     r"only images are available|\bn challenge|extraction failed|post-?processing|"
     r"no video formats found|requested format is not available|page needs to be reloaded|"
     r"precondition check failed|invalid argument|live dash videos|initialization fragment", Reason.EXTRACTION_FAILED),
]  # fmt: skip

NOT_UNDERSTOOD = (Reason.UNKNOWN, Reason.EXTRACTION_FAILED)

# These errors end the run, because all other clips would fail in the same way.
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
        "no player client is left; correct or omit --youtube.clients",
    ),
    (
        r"no supported javascript runtime",
        ConfigError,
        "this node has no JavaScript runtime for yt-dlp; install one with: pip install deno",
    ),
]


def excerpt(text: object) -> str:
    """Shorten an external message for the detail of a clip, and remove terminal colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(text)).strip()
    return plain if len(plain) <= MAX_QUOTED_CHARS else plain[: MAX_QUOTED_CHARS - 1] + "…"


def reason_of_status(status: int, reasons: dict[int, Reason] = REASON_OF_STATUS) -> Reason:
    """Classify the status of an unsuccessful HTTP response."""
    # A 3xx status only gets here if a redirect has no target or the redirects form a loop.
    is_server_error = status >= 500 or 300 <= status < 400
    return reasons.get(status, Reason.SERVER_ERROR if is_server_error else Reason.UNKNOWN)


def reason_of_text(text: str) -> Reason:
    """Classify a message from YouTube or yt-dlp."""
    # Ignore the warning that formats without a PO token "may yield HTTP Error 403".
    if status := re.search(r"(?<!yield )HTTP Error (\d{3})", text):
        return reason_of_status(int(status[1]), YOUTUBE_REASON_OF_STATUS)
    text = text.replace("’", "'").lower()
    return next((reason for pattern, reason in REASON_OF_TEXT if re.search(pattern, text, re.DOTALL)), Reason.UNKNOWN)


def failure_of(error: BaseException, warnings: Sequence[str] = ()) -> Failure:
    """Classify an exception from yt-dlp, using the warnings that came before it.

    Raises ConfigError or StoreError if the problem affects the whole run.
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
    # yt-dlp tries several clients and logs a warning for each failure. Its final error only says that no client is
    # left.
    causes = [(reason_of_text(warning), warning) for warning in warnings]
    causes = [(cause, warning) for cause, warning in causes if cause not in NOT_UNDERSTOOD]
    # Throttling takes precedence over other causes, because a throttled address must pause.
    causes.sort(key=lambda pair: pair[0].category is not FailureCategory.THROTTLED)
    return Failure(causes[0][0], f"{detail} ({excerpt(causes[0][1])})") if causes else Failure(reason, detail)


def _raise_run_error(messages: Sequence[str]) -> None:
    for message in messages:
        for pattern, error_type, advice in RUN_ERROR_OF_TEXT:
            if re.search(pattern, message, re.IGNORECASE):
                raise error_type(f"{advice}. The error was: {excerpt(message)}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes. yt-dlp stores causes in `exc_info` or `cause`."""
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
            # A timeout may only appear further down the chain of causes.
            timed_out = any(isinstance(cause, TimeoutError) for cause in _causes(error))
            return Reason.TIMED_OUT if timed_out or "timed out" in str(error) else Reason.CONNECTION
    return None
