import ast
import errno
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from ssl import SSLCertVerificationError
from types import ModuleType

import pytest
from yt_dlp.downloader import dash, fragment, hls, http
from yt_dlp.extractor.youtube import _base, _video
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import (
    CertificateVerifyError,
    HTTPError,
    IncompleteRead,
    ProxyError,
    SSLError,
    TransportError,
)
from yt_dlp.socks import Socks5Error
from yt_dlp.utils import (
    ContentTooShortError,
    DownloadError,
    ExtractorError,
    GeoRestrictedError,
    UnavailableVideoError,
    UnsupportedError,
)

from pipeline.errors import MAX_QUOTED_CHARS, ConfigError, StoreError
from pipeline.records import Reason
from pipeline.sources.reasons import failure_of, reason_of_text

LIMIT_HINT = "The current session has been rate-limited by YouTube for up to an hour."


def wrapped(text: str, error: Exception) -> DownloadError:
    """Return the exception that yt-dlp raises for a text and its cause."""
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
    ("Requested format is not available. Use --list-formats for a list of available formats", Reason.EXTRACTION_FAILED),
    ("[download] Got error: 1000 bytes read, 91616 more expected", Reason.TRUNCATED),
    ("[download] Got error: HTTP Error 429: Too Many Requests", Reason.RATE_LIMITED),
    ("[download] Got error: The read operation timed out", Reason.TIMED_OUT),
    ("[download] Got error: [Errno 104] Connection reset by peer", Reason.CONNECTION),
    ("All player responses are invalid. Your IP is likely being blocked by Youtube", Reason.BLOCKED),
    ("unable to download video data: HTTP Error 403: Forbidden", Reason.BLOCKED),
    ("Our systems have detected unusual traffic from your computer network.", Reason.BOT_CHECK),
    ("YouTube said: Unknown error", Reason.SERVER_ERROR),
    ("An error occurred. Please try again later.", Reason.SERVER_ERROR),
    ("Incomplete data received", Reason.SERVER_ERROR),
    ("unable to download video data: HTTP Error 404: Not Found", Reason.SERVER_ERROR),
    ("Premieres in 12 hours", Reason.NOT_READY),
    ("Premiere will begin shortly", Reason.NOT_READY),
    ("This live event will begin in a few moments.", Reason.NOT_READY),
    ("We're processing this video. Check back later.", Reason.NOT_READY),
    ("Video unavailable. Playback on other websites has been disabled by the video owner", Reason.CLIENT_REFUSED),
    ("Video unavailable. This video is unavailable on this device.", Reason.CLIENT_REFUSED),
    (
        "The following content is not available on this app. Watch on the latest version of YouTube.",
        Reason.CLIENT_REFUSED,
    ),
    ("YouTube is no longer supported in this application or device", Reason.CLIENT_REFUSED),
    ("Watch video on YouTube. Error 153. Video player configuration error", Reason.CLIENT_REFUSED),
    (
        "Video unavailable. This video contains content from SME, who has blocked it from display on this website or"
        " application",
        Reason.CLIENT_REFUSED,
    ),
    ("This video is DRM protected", Reason.CLIENT_REFUSED),
    (
        "--PJHxphWEs: ios client https formats require a GVS PO Token which was not provided. They will be skipped as"
        " they may yield HTTP Error 403.",
        Reason.CLIENT_REFUSED,
    ),
    (
        "Some tv client https formats have been skipped as they are missing a URL. YouTube may have enabled the"
        " SABR-only streaming experiment for the current session.",
        Reason.CLIENT_REFUSED,
    ),
    (
        "Video unavailable. This video contains content from UMG, who has blocked it on copyright grounds",
        Reason.COPYRIGHT,
    ),
    ("This video is no longer available due to a trademark claim by Nintendo", Reason.COPYRIGHT),
    (
        "This content is not available on this country domain due to a legal complaint from the government.",
        Reason.COUNTRY_BLOCKED,
    ),
    ("This video is not available from your location due to geo restriction", Reason.COUNTRY_BLOCKED),
    ("This video is no longer available due to a court order", Reason.REMOVED),
    ("This YouTube account has been suspended.", Reason.ACCOUNT_TERMINATED),
    (
        "The following content has been identified by the YouTube community as inappropriate or offensive to some"
        " audiences.",
        Reason.AGE_RESTRICTED,
    ),
    ("Viewer discretion is advised. This video may contain suicide or self-harm topics", Reason.AGE_RESTRICTED),
    ("This video is only available to Music Premium members", Reason.LOGIN_REQUIRED),
    ("This video requires payment to watch", Reason.LOGIN_REQUIRED),
    ("This video is only available for registered users", Reason.LOGIN_REQUIRED),
    ("YouTube said: The caller does not have permission", Reason.LOGIN_REQUIRED),
    (
        "This video is restricted. Please check the Google Workspace administrator and/or the network administrator"
        " restrictions.",
        Reason.FORBIDDEN,
    ),
    ("This video does not exist.", Reason.NOT_FOUND),
    ("Incomplete YouTube ID N_708QY7Ob. URL looks truncated.", Reason.NOT_FOUND),
    ("This live stream recording is not available.", Reason.NOT_FOUND),
    ("This live event has ended.", Reason.NOT_FOUND),
    ("content too short (expected 100 bytes and served 10)", Reason.TRUNCATED),
    ("fragment 3 not found, unable to continue", Reason.TRUNCATED),
    ("unable to download video data: HTTP Error 416: Requested range not satisfiable", Reason.TRUNCATED),
    ("Failed to extract any player response", Reason.EXTRACTION_FAILED),
    ("No video formats found!", Reason.EXTRACTION_FAILED),
    ("The page needs to be reloaded.", Reason.EXTRACTION_FAILED),
    ("YouTube said: Precondition check failed.", Reason.EXTRACTION_FAILED),
    ("An extractor error has occurred. (caused by KeyError('x')); please report this issue", Reason.EXTRACTION_FAILED),
    ("Unable to download API page: HTTP Error 400: Bad Request", Reason.EXTRACTION_FAILED),
    ("Only images are available for download. use --list-formats to see them", Reason.EXTRACTION_FAILED),
    ("n challenge solving failed: Some formats may be missing.", Reason.EXTRACTION_FAILED),
    ("nsig extraction failed: Some formats may be missing", Reason.EXTRACTION_FAILED),
    ("Postprocessing: Conversion failed!", Reason.EXTRACTION_FAILED),
    ("Offline.", Reason.NOT_READY),
    ("Video unavailable. The uploader has not made this video available", Reason.COUNTRY_BLOCKED),
    ("[Errno -3] Temporary failure in name resolution", Reason.CONNECTION),
    ("Failed to resolve 'www.youtube.com' ([Errno -2] Name or service not known)", Reason.CONNECTION),
    ("[Errno 101] Network is unreachable", Reason.CONNECTION),
    ("Something that YouTube never said before", Reason.UNKNOWN),
]


@pytest.mark.parametrize(("text", "reason"), TEXTS, ids=[text[:60] for text, _ in TEXTS])
def test_youtube_messages_are_classified(text: str, reason: Reason) -> None:
    error = ExtractorError(text, video_id="--PJHxphWEs", expected=True)
    failure = failure_of(wrapped(f"\x1b[0;31mERROR:\x1b[0m {error}", error))
    assert failure.reason is reason is reason_of_text(text)
    assert failure.detail == (str(error) if len(str(error)) < 190 else failure.detail[:199] + "…")
    assert "\x1b" not in failure.detail


NOT_OF_A_VIDEO = r"OAuth|language code|Invalid URL|for comment|YouTube said: 1|Interrupted by user"
"""Messages that never appear for a single video, and one that quotes another message."""


def messages_of(module: ModuleType) -> Iterator[str]:
    """Yield the error texts in a module of yt-dlp, with a number for each inserted value."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in ("ExtractorError", "raise_no_formats", "raise_login_required", "report_error"):
            parts = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            if any(isinstance(part, ast.Constant) for part in parts):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in parts)


def test_every_message_of_the_installed_yt_dlp_is_classified() -> None:
    modules = (_base, _video, http, fragment, hls, dash)
    texts = [text for module in modules for text in messages_of(module) if not re.search(NOT_OF_A_VIDEO, text)]
    assert len(texts) > 10
    for text in texts:
        with suppress(ConfigError, StoreError):  # errors that affect every clip
            assert failure_of(ExtractorError(text, expected=True)).reason is not Reason.UNKNOWN, text


def status(code: int) -> HTTPError:
    return HTTPError(Response(io.BytesIO(), "http://host/", {}, status=code))


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (status(401), Reason.LOGIN_REQUIRED),
        (status(403), Reason.BLOCKED),
        (status(404), Reason.SERVER_ERROR),
        (status(410), Reason.SERVER_ERROR),
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
def test_yt_dlp_exceptions_are_classified(cause: Exception, reason: Reason) -> None:
    assert failure_of(cause).reason is reason
    error = ExtractorError("Unable to download webpage", cause=cause)
    assert failure_of(wrapped("ERROR: Unable to download webpage", error)).reason is reason


@pytest.mark.parametrize(
    ("error", "error_type", "advice"),
    [
        (status(407), ConfigError, "--fetch.proxies"),
        (
            ProxyError(cause=OSError("Tunnel connection failed: 407 Proxy Authentication Required")),
            ConfigError,
            "--fetch.proxies",
        ),
        (ProxyError(cause=Socks5Error(0xFE)), ConfigError, "--fetch.proxies"),
        (
            CertificateVerifyError(
                cause=SSLCertVerificationError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify")
            ),
            ConfigError,
            "clock",
        ),
        (
            UnavailableVideoError(str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/media.webm.part"))),
            StoreError,
            "TMPDIR",
        ),
        (DownloadError("ERROR: unable to open for writing: [Errno 13] Permission denied"), StoreError, "TMPDIR"),
        (ExtractorError("No player clients have been requested", expected=True), ConfigError, "--youtube.clients"),
    ],
    ids=repr,
)
def test_error_that_affects_every_clip_ends_the_run(error: Exception, error_type: type[Exception], advice: str) -> None:
    with pytest.raises(error_type, match=advice):
        failure_of(wrapped(f"ERROR: {error}", error))


def test_warnings_classify_an_unspecific_error() -> None:
    error = ExtractorError("Failed to extract any player response")
    warnings = [
        "[youtube] Unable to download API page: HTTP Error 403: Forbidden (caused by <HTTPError 403: Forbidden>)",
        "Some tv client https formats have been skipped as they are missing a URL. YouTube may have enabled the",
    ]
    assert failure_of(error, warnings).reason is Reason.BLOCKED
    assert failure_of(error, warnings[1:]).reason is Reason.CLIENT_REFUSED
    assert failure_of(error, ["n challenge solving failed"]).reason is Reason.EXTRACTION_FAILED
    with pytest.raises(ConfigError, match="pip install deno"):
        failure_of(error, ["No supported JavaScript runtime could be found. Only deno is enabled by default"])


def test_long_messages_are_shortened() -> None:
    assert len(failure_of(ExtractorError("x" * 10**6)).detail) == MAX_QUOTED_CHARS
