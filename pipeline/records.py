"""The words of the pipeline as values: what travels between its steps."""

from dataclasses import dataclass
from enum import StrEnum


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


class Kind(StrEnum):
    """What a failure means for the next run."""

    PERMANENT = "permanent"
    """It will not come back."""
    POLICY = "policy"
    """Who asks, or from where, is refused."""
    THROTTLED = "throttled"
    """This address asked too often; says nothing of the clip."""
    TRANSIENT = "transient"
    """May work the next time."""


class Reason(StrEnum):
    """Why a clip could not be had, with its kind."""

    kind: Kind

    def __new__(cls, value: str, kind: Kind) -> "Reason":
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.kind = kind
        return reason

    NOT_FOUND = "not_found", Kind.PERMANENT
    REMOVED = "removed", Kind.PERMANENT
    PRIVATE = "private", Kind.PERMANENT
    ACCOUNT_TERMINATED = "account_terminated", Kind.PERMANENT
    COPYRIGHT = "copyright", Kind.PERMANENT
    NOT_MEDIA = "not_media", Kind.PERMANENT
    NO_AUDIO = "no_audio", Kind.PERMANENT
    OUT_OF_RANGE = "out_of_range", Kind.PERMANENT
    """The media ends before the segment starts, or holds less than one fbank frame of it."""
    TOO_LARGE = "too_large", Kind.PERMANENT

    AGE_RESTRICTED = "age_restricted", Kind.POLICY
    COUNTRY_BLOCKED = "country_blocked", Kind.POLICY
    LOGIN_REQUIRED = "login_required", Kind.POLICY
    FORBIDDEN = "forbidden", Kind.POLICY

    RATE_LIMITED = "rate_limited", Kind.THROTTLED
    BOT_CHECK = "bot_check", Kind.THROTTLED

    TIMED_OUT = "timed_out", Kind.TRANSIENT
    CONNECTION = "connection", Kind.TRANSIENT
    SERVER_ERROR = "server_error", Kind.TRANSIENT
    TRUNCATED = "truncated", Kind.TRANSIENT
    """Fewer bytes came than were promised, or the media breaks off before its own end."""
    UNKNOWN = "unknown", Kind.TRANSIENT


@dataclass(frozen=True, slots=True)
class Failure:
    """A clip that could not be had."""

    reason: Reason
    detail: str
    """The original message, word for word."""
    retry_after_s: float | None = None
    """How long the other side asks to be left alone, if it says so."""


@dataclass(frozen=True, slots=True)
class Media:
    """An encoded file that holds a segment, as a source delivered it."""

    content: bytes | str
    """The bytes, or the path of a local file."""
    source: str
    """Where it came from, for the record."""
    offset_ms: int = 0
    """Time of the video at which the file starts: 0 for a whole video, the segment's start for a cut one."""


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
    """What became of one shard plan."""

    shard_id: str
    split: str
    num_planned: int
    num_written: int
    failures: dict[Reason, int]
    num_bytes: int
    """Size of the tar."""
    is_new: bool
    """False if the shard was there already."""
