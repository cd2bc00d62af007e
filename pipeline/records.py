"""The pipeline's values: what travels between its steps."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

CLIPS_PER_PART = 8
"""Of a shard's journal, by which a killed worker loses no clip."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of AudioSet's CSV: a stretch of a video that should exist."""

    ytid: str
    start_ms: int
    end_ms: int
    labels: tuple[str, ...]
    """Machine ids (mids) such as `/m/09x0r`."""
    split: str

    @property
    def key(self) -> str:
        return f"{self.ytid}_{self.start_ms}"


class FailureCategory(StrEnum):
    """Kind of failure, which decides whether the next run tries again."""

    PERMANENT = "permanent"
    """It will not come back."""
    POLICY = "policy"
    """The media exist, but not for this account, address or country."""
    THROTTLED = "throttled"
    """This address asked too often; that says nothing about the clip."""
    TRANSIENT = "transient"
    """May work the next time."""


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
    """The media end before the segment starts, or hold less than one fbank frame of it."""
    TOO_LARGE = "too_large", FailureCategory.PERMANENT

    AGE_RESTRICTED = "age_restricted", FailureCategory.POLICY
    COUNTRY_BLOCKED = "country_blocked", FailureCategory.POLICY
    LOGIN_REQUIRED = "login_required", FailureCategory.POLICY
    FORBIDDEN = "forbidden", FailureCategory.POLICY
    CLIENT_REFUSED = "client_refused", FailureCategory.POLICY
    """Not for the player that yt-dlp pretends to be; another one of `--youtube.clients` may get it."""

    RATE_LIMITED = "rate_limited", FailureCategory.THROTTLED
    BOT_CHECK = "bot_check", FailureCategory.THROTTLED
    BLOCKED = "blocked", FailureCategory.THROTTLED
    """YouTube refuses this address for a while without saying why: its 403, mostly."""

    TIMED_OUT = "timed_out", FailureCategory.TRANSIENT
    CONNECTION = "connection", FailureCategory.TRANSIENT
    SERVER_ERROR = "server_error", FailureCategory.TRANSIENT
    TRUNCATED = "truncated", FailureCategory.TRANSIENT
    """Fewer bytes arrived than were announced, or the media end before the length in their header."""
    NOT_READY = "not_ready", FailureCategory.TRANSIENT
    """A premiere, a live event to come, or an upload that is still processed."""
    EXTRACTION_FAILED = "extraction_failed", FailureCategory.TRANSIENT
    """yt-dlp did not understand the answer; many of these mean that a newer yt-dlp is needed."""
    UNKNOWN = "unknown", FailureCategory.TRANSIENT


@dataclass(frozen=True, slots=True)
class Failure:
    """An unavailable clip, and why."""

    reason: Reason
    detail: str
    """The original message, at most 200 characters of it."""
    retry_after_s: float | None = None
    """Seconds after which the server allows the next request, if it says so."""
    source: str = ""
    """Digest of the sources that lack the clip, for `missing_in_source`."""


@dataclass(frozen=True, slots=True)
class Media:
    """An encoded file that holds a segment, as a source delivered it."""

    content: bytes | Path
    """The bytes, or a local file that the source itself chose. Never text: a name out of a foreign table must not
    become a file that is read."""
    source: str
    """Where it came from, for the record."""
    offset_ms: int = 0
    """Time of the video at which the file starts: 0 for a whole video, the segment's start if it is already cut."""


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One unit of work: the segments that become one shard."""

    shard_id: str
    split: str
    segments: tuple[Segment, ...]
    attempts: tuple[int, ...]
    """Attempts made at each segment in earlier runs."""


@dataclass(frozen=True, slots=True)
class ShardReport:
    """Result of one shard plan."""

    shard_id: str
    split: str
    num_planned: int
    num_written: int
    failures: dict[Reason, int]
    num_bytes: int
    """Size of the tar."""
    is_new: bool
    """False if the shard was there already."""
