"""Values that are passed between the steps of the pipeline."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipeline.store.layout import Shard

CLIPS_PER_PART = 8
"""Number of clips per journal part. A killed worker loses at most this many finished clips."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of AudioSet's CSV files: a labelled interval of a video."""

    ytid: str
    start_ms: int
    end_ms: int
    labels: tuple[str, ...]
    """AudioSet class ids (mids), such as `/m/09x0r`."""
    split: str

    @property
    def key(self) -> str:
        return f"{self.ytid}_{self.start_ms}"


class FailureCategory(StrEnum):
    """The kind of a failure. It decides whether the next run retries the clip."""

    PERMANENT = "permanent"
    """The clip is gone for good."""
    POLICY = "policy"
    """The media exist, but are not accessible to this account, address or country."""
    THROTTLED = "throttled"
    """This address sent too many requests. The clip itself may be available."""
    TRANSIENT = "transient"
    """The failure is temporary, so another attempt may succeed."""


class Reason(StrEnum):
    """The reason why a clip is unavailable, and its category."""

    category: FailureCategory

    def __new__(cls, value: str, category: FailureCategory) -> "Reason":
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.category = category
        return reason

    NOT_FOUND = "not_found", FailureCategory.PERMANENT
    MISSING_IN_SOURCE = "missing_in_source", FailureCategory.PERMANENT
    """None of the copies or folders in `--media` has the clip. It is due again after their content or `--media`
    changes."""
    REMOVED = "removed", FailureCategory.PERMANENT
    PRIVATE = "private", FailureCategory.PERMANENT
    ACCOUNT_TERMINATED = "account_terminated", FailureCategory.PERMANENT
    COPYRIGHT = "copyright", FailureCategory.PERMANENT
    NOT_MEDIA = "not_media", FailureCategory.PERMANENT
    NO_AUDIO = "no_audio", FailureCategory.PERMANENT
    OUT_OF_RANGE = "out_of_range", FailureCategory.PERMANENT
    """The media end before the segment starts, or contain less than one fbank frame of the segment."""
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
    """YouTube temporarily refuses this address without giving a reason, usually with status 403."""

    TIMED_OUT = "timed_out", FailureCategory.TRANSIENT
    CONNECTION = "connection", FailureCategory.TRANSIENT
    SERVER_ERROR = "server_error", FailureCategory.TRANSIENT
    TRUNCATED = "truncated", FailureCategory.TRANSIENT
    """Fewer bytes arrived than the server announced, or the media are shorter than their header says."""
    NOT_READY = "not_ready", FailureCategory.TRANSIENT
    """The video is a premiere, an upcoming live event, or an upload that YouTube is still processing."""
    EXTRACTION_FAILED = "extraction_failed", FailureCategory.TRANSIENT
    """yt-dlp did not understand YouTube's response. If this happens often, update yt-dlp."""
    UNKNOWN = "unknown", FailureCategory.TRANSIENT


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason why a clip is unavailable, with the original message."""

    reason: Reason
    detail: str
    """The original message, shortened to 200 characters."""
    retry_after_s: float | None = None
    """Seconds to wait before the next request, if the server asked for a pause."""
    source: str = ""
    """Digest of the sources that lack the clip. Only set for `missing_in_source`."""


@dataclass(frozen=True, slots=True)
class Media:
    """An encoded media file that contains a segment, as delivered by a source."""

    content: bytes | Path
    """Encoded bytes, or a local file chosen by the source. Strings are not accepted, so that a name from an untrusted
    table can never become a path."""
    source: str
    """Where the media came from, for the sidecar."""
    offset_ms: int = 0
    """Position in the video at which the file starts: 0 for a whole video, or the segment's start for a file that
    contains only the segment."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The segments of one shard, which are converted together as one task."""

    shard: Shard
    segments: tuple[Segment, ...]
    attempts: tuple[int, ...]
    """Number of attempts at each segment in earlier runs."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """The result of converting one shard plan."""

    shard: Shard
    num_planned: int
    num_written: int
    failures: dict[Reason, int]
    num_bytes: int
    """Size of the shard's tar."""
    is_new: bool
    """False if the shard already existed."""
