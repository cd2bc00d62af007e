"""Values that travel between the steps of the pipeline."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.store.layout import Shard

CLIPS_PER_PART = 8
"""Number of clips per journal part. A killed worker loses at most this many finished clips."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of AudioSet's CSV: an interval of a video."""

    ytid: str
    start_ms: int
    end_ms: int
    labels: tuple[str, ...]
    """AudioSet class ids (mids) such as `/m/09x0r`."""
    split: str

    @property
    def key(self) -> str:
        return f"{self.ytid}_{self.start_ms}"


class FailureCategory(StrEnum):
    """Kind of failure, which decides whether the next run retries the clip."""

    PERMANENT = "permanent"
    """The clip will not come back."""
    POLICY = "policy"
    """The media exist, but this account, address or country has no access."""
    THROTTLED = "throttled"
    """The address sent too many requests. The clip itself may be available."""
    TRANSIENT = "transient"
    """The next attempt may succeed."""


class Reason(StrEnum):
    """Reason for an unavailable clip, with its category."""

    category: FailureCategory

    def __new__(cls, value: str, category: FailureCategory) -> "Reason":
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.category = category
        return reason

    NOT_FOUND = "not_found", FailureCategory.PERMANENT
    MISSING_IN_SOURCE = "missing_in_source", FailureCategory.PERMANENT
    """None of the copies or folders in `--media` has the clip. Due again once their content or `--media` changes."""
    REMOVED = "removed", FailureCategory.PERMANENT
    PRIVATE = "private", FailureCategory.PERMANENT
    ACCOUNT_TERMINATED = "account_terminated", FailureCategory.PERMANENT
    COPYRIGHT = "copyright", FailureCategory.PERMANENT
    NOT_MEDIA = "not_media", FailureCategory.PERMANENT
    NO_AUDIO = "no_audio", FailureCategory.PERMANENT
    OUT_OF_RANGE = "out_of_range", FailureCategory.PERMANENT
    """The media end before the segment starts, or contain less than one fbank frame of it."""
    TOO_LARGE = "too_large", FailureCategory.PERMANENT

    AGE_RESTRICTED = "age_restricted", FailureCategory.POLICY
    COUNTRY_BLOCKED = "country_blocked", FailureCategory.POLICY
    LOGIN_REQUIRED = "login_required", FailureCategory.POLICY
    FORBIDDEN = "forbidden", FailureCategory.POLICY
    CLIENT_REFUSED = "client_refused", FailureCategory.POLICY
    """YouTube refuses the video to yt-dlp's player client. Another client in `--youtube.clients` may succeed."""

    RATE_LIMITED = "rate_limited", FailureCategory.THROTTLED
    BOT_CHECK = "bot_check", FailureCategory.THROTTLED
    BLOCKED = "blocked", FailureCategory.THROTTLED
    """YouTube temporarily refuses this address without giving a reason, mostly with status 403."""

    TIMED_OUT = "timed_out", FailureCategory.TRANSIENT
    CONNECTION = "connection", FailureCategory.TRANSIENT
    SERVER_ERROR = "server_error", FailureCategory.TRANSIENT
    TRUNCATED = "truncated", FailureCategory.TRANSIENT
    """Fewer bytes arrived than announced, or the media end before the length in their header."""
    NOT_READY = "not_ready", FailureCategory.TRANSIENT
    """A premiere, an upcoming live event, or an upload that YouTube is still processing."""
    EXTRACTION_FAILED = "extraction_failed", FailureCategory.TRANSIENT
    """yt-dlp did not understand the answer. If this happens often, update yt-dlp."""
    UNKNOWN = "unknown", FailureCategory.TRANSIENT


@dataclass(frozen=True, slots=True)
class Failure:
    """An unavailable clip and the reason."""

    reason: Reason
    detail: str
    """The original message, at most 200 characters."""
    retry_after_s: float | None = None
    """Seconds until the next request, if the server requested a pause."""
    source: str = ""
    """Digest of the sources that lack the clip, for `missing_in_source`."""


@dataclass(frozen=True, slots=True)
class Media:
    """An encoded media file with a segment, as delivered by a source."""

    content: bytes | Path
    """Bytes, or a local file chosen by the source. Text is not accepted, because a name in a foreign table must not
    become a path."""
    source: str
    """Origin of the media, for the sidecar."""
    offset_ms: int = 0
    """Position in the video at which the file starts. It is 0 for a whole video and the segment's start for a cut
    file."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The segments of one shard, which are a unit of work."""

    shard: Shard
    segments: tuple[Segment, ...]
    attempts: tuple[int, ...]
    """Number of attempts at each segment in earlier runs."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """Result of one shard plan."""

    shard: Shard
    num_planned: int
    num_written: int
    failures: dict[Reason, int]
    num_bytes: int
    """Size of the tar."""
    is_new: bool
    """False for a shard that already existed."""
