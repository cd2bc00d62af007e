import io
import sys

import pytest
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, ProxyError, SSLError, TransportError
from yt_dlp.utils import (
    ContentTooShortError,
    DownloadError,
    ExtractorError,
    GeoRestrictedError,
    UnsupportedError,
)

from pipeline.records import Reason
from pipeline.sources.reasons import failure_of, reason_of_text

LIMIT_HINT = "The current session has been rate-limited by YouTube for up to an hour."


def wrapped(text: str, error: Exception) -> DownloadError:
    """As yt-dlp raises it."""
    try:
        raise error
    except type(error):
        return DownloadError(text, sys.exc_info())  # pyright: ignore[reportArgumentType]


TEXTS = [
    ("Private video. Sign in if you've been granted access to this video", Reason.PRIVATE),
    ("Video unavailable. This video is private", Reason.PRIVATE),
    (
        "Video unavailable. This video is no longer available because the YouTube account associated with this video"
        " has been terminated.",
        Reason.ACCOUNT_TERMINATED,
    ),
    (
        "Video unavailable. This video is no longer available because the uploader has closed their YouTube account.",
        Reason.ACCOUNT_TERMINATED,
    ),
    ("Video unavailable. This video is no longer available due to a copyright claim by WMG", Reason.COPYRIGHT),
    (
        "Video unavailable. This video contains content from WMG, who has blocked it in your country on copyright"
        " grounds",
        Reason.COUNTRY_BLOCKED,
    ),
    ("Video unavailable. The uploader has not made this video available in your country", Reason.COUNTRY_BLOCKED),
    ("This video has been removed for violating YouTube's policy on hate speech.", Reason.REMOVED),
    ("Video unavailable. This video has been removed by the uploader", Reason.REMOVED),
    ("Sign in to confirm your age. This video may be inappropriate for some users.", Reason.AGE_RESTRICTED),
    ("Sign in to confirm you’re not a bot. Use --cookies-from-browser", Reason.BOT_CHECK),
    ("Video unavailable. YouTube is requiring a captcha challenge before playback", Reason.BOT_CHECK),
    (f"Video unavailable. This content isn't available, try again later. {LIMIT_HINT}", Reason.RATE_LIMITED),
    ("Video unavailable. This content isn’t available.", Reason.UNKNOWN),
    ("This video is available to this channel's members on level: Fan", Reason.LOGIN_REQUIRED),
    ("Join this channel to get access to members-only content like this video", Reason.LOGIN_REQUIRED),
    ("Please sign in. Use --cookies-from-browser or --cookies for the authentication", Reason.LOGIN_REQUIRED),
    ("Video unavailable", Reason.NOT_FOUND),
    ("Video unavailable. This video isn't available anymore", Reason.NOT_FOUND),
    ("Video unavailable. This video is unavailable", Reason.NOT_FOUND),
    ("This video is not available", Reason.NOT_FOUND),
    ("This video is DRM protected", Reason.FORBIDDEN),
    ("Requested format is not available. Use --list-formats for a list of available formats", Reason.UNKNOWN),
    ("[download] Got error: 1000 bytes read, 91616 more expected", Reason.TRUNCATED),
    ("[download] Got error: HTTP Error 429: Too Many Requests", Reason.RATE_LIMITED),
    ("[download] Got error: The read operation timed out", Reason.TIMED_OUT),
    ("[download] Got error: [Errno 104] Connection reset by peer", Reason.CONNECTION),
    ("Something that YouTube never said before", Reason.UNKNOWN),
]


@pytest.mark.parametrize(("text", "reason"), TEXTS, ids=[text[:60] for text, _ in TEXTS])
def test_youtubes_texts(text: str, reason: Reason) -> None:
    error = ExtractorError(text, video_id="--PJHxphWEs", expected=True)
    failure = failure_of(wrapped(f"\x1b[0;31mERROR:\x1b[0m {error}", error))
    assert failure.reason is reason is reason_of_text(text)
    assert failure.detail.endswith(str(error))
    assert "\x1b" not in failure.detail


def status(code: int) -> HTTPError:
    return HTTPError(Response(io.BytesIO(), "http://host/", {}, status=code))


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (status(401), Reason.LOGIN_REQUIRED),
        (status(403), Reason.FORBIDDEN),
        (status(404), Reason.NOT_FOUND),
        (status(410), Reason.REMOVED),
        (status(429), Reason.RATE_LIMITED),
        (status(451), Reason.COUNTRY_BLOCKED),
        (status(503), Reason.SERVER_ERROR),
        (status(418), Reason.UNKNOWN),
        (TransportError(cause=TimeoutError("timed out")), Reason.TIMED_OUT),
        (TransportError("getaddrinfo failed"), Reason.CONNECTION),
        (SSLError("handshake"), Reason.CONNECTION),
        (ProxyError("tunnel refused"), Reason.CONNECTION),
        (IncompleteRead(10, 20), Reason.TRUNCATED),
        (ContentTooShortError(10, 20), Reason.TRUNCATED),
        (UnsupportedError("http://host/"), Reason.NOT_MEDIA),
        (GeoRestrictedError("Not here"), Reason.COUNTRY_BLOCKED),
    ],
    ids=repr,
)
def test_yt_dlps_exceptions(cause: Exception, reason: Reason) -> None:
    assert failure_of(cause).reason is reason
    error = ExtractorError("Unable to download webpage", cause=cause)
    assert failure_of(wrapped("ERROR: Unable to download webpage", error)).reason is reason
