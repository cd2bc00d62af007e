"""Settings of the preprocessing. The docstring under a field is its `--help` text."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.records import FailureCategory


def check_above_0(config: object, names: Iterable[str], group: str = "") -> None:
    """Raise ConfigError, naming the flag, if one of some settings is 0 or less; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{group}{name.replace('_', '-')} must be above 0, found {value}")


@dataclass(frozen=True)
class FetchConfig:
    """Fetching of media."""

    deadline_s: float = 60.0
    """Seconds that one attempt at one clip may take, whatever the other side does."""
    max_attempts: int = 3
    """Attempts at a clip within a run while its failure is transient."""
    max_total_attempts: int = 10
    """Attempts in all runs; a rerun leaves a clip alone that failed so often."""
    backoff_s: float = 0.5
    """Pause before the second attempt; it doubles with each further one, with jitter."""
    max_media_bytes: int = 256 * 2**20
    """A larger file is not fetched but counted as too large. A worker may hold `num_threads` of them in memory."""
    num_threads: int = 8
    """Clips of a shard that are fetched at the same time, ahead of decoding. After a kill these are fetched again, and
    up to 8 that were not kept yet."""
    proxies: str = ""
    """A file with the address of a proxy per line. Each has a rate limit of its own."""

    def __post_init__(self) -> None:
        names = ("deadline_s", "max_attempts", "max_total_attempts", "max_media_bytes", "num_threads")
        check_above_0(self, names, "fetch.")
        if self.backoff_s < 0:
            raise ConfigError(f"--fetch.backoff-s must not be negative, found {self.backoff_s}")


@dataclass(frozen=True)
class RateLimitConfig:
    """Rate of requests. An address is a node, or a proxy."""

    clips_per_hour: int | None = None
    """Clips that one address asks for in an hour, evenly spread with jitter; 0 is no limit. Unset it is 300 for
    YouTube, what a guest session is allowed, and no limit elsewhere."""
    cooldown_s: float = 900.0
    """How long an address asks for nothing once it was told that it asks too often; it doubles each time until a clip
    comes."""
    outage_cooldown_s: float = 30.0
    """The same once different clips failed in a row as they do if the source is down: no connection, no answer in time,
    server errors, access denied. Those clips are asked for again, and no attempt is counted."""
    max_cooldown_s: float = 3600.0
    """The longest cooldown, whatever the source asks for."""
    max_idle_s: float = 7200.0
    """A run in which every address is cooling down and no clip was decided for so long ends: with what it has if it was
    throttled, with an error if the source is down."""

    def __post_init__(self) -> None:
        if (self.clips_per_hour or 0) < 0:
            raise ConfigError(f"--rate-limit.clips-per-hour must not be negative, found {self.clips_per_hour}")
        check_above_0(self, ("cooldown_s", "outage_cooldown_s", "max_cooldown_s", "max_idle_s"), "rate-limit.")


@dataclass(frozen=True)
class SelectionConfig:
    """Choice of training clips."""

    exclude: tuple[str, ...] = ()
    """Training clips to leave out, by what is measured of them: "silence > 0.9", "bandwidth_hz < 4500", "codec == mp3
    and bit_rate < 32000", duplicate_of_eval, duplicate. Clips that are evaluated on stay; see docs/quality.md."""


@dataclass(frozen=True)
class YouTubeConfig:
    """yt-dlp's settings for YouTube. Secrets are named by their files, so that they stand in no log."""

    cookies: str = ""
    """A file of cookies in Netscape's form (`cookies.txt`). Each process works on a copy of its own."""
    po_tokens: str = ""
    """A file of PO tokens, each as CLIENT.CONTEXT+TOKEN."""
    clients: tuple[str, ...] = ()
    """Player clients to pretend to be, such as web; unset yt-dlp chooses. Some videos are refused to some of them."""
    js_runtime: str = ""
    """JavaScript runtime for YouTube's player, as NAME or NAME:PATH, such as node:/usr/bin/node; unset yt-dlp looks for
    deno, which `pip install deno` brings."""
    impersonate: str = ""
    """Browser whose TLS and headers to send, such as chrome or safari; needs `pip install '.[impersonate]'`. Cures some
    of the refusals that name too many requests."""
    source_address: str = ""
    """Local address to send requests from, on a machine that has several."""
    videos_per_process: int = 200
    """Videos that a process fetches before it is replaced: yt-dlp leaks about 1 MB each."""

    def __post_init__(self) -> None:
        check_above_0(self, ["videos_per_process"], "youtube.")


@dataclass(frozen=True)
class PreprocessConfig:
    """From AudioSet's CSV files to a snapshot."""

    metadata: str = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
    """Folder or address that holds {split}_segments.csv for each split, and class_labels_indices.csv."""
    media: tuple[str, ...] = ()
    """Sources of media, in order of preference. Copies of AudioSet: a folder, an s3:// prefix, a repository such as
    hf://datasets/agkphysics/AudioSet, or a pattern such as s3://bucket/**/*.tar, with tars, zips, parquet files or
    files named by id. Last also: `youtube`, an address such as http://mirror/{ytid}.webm ({start_ms}, {end_ms} and
    {split} are available as well), or a table media.csv of id,path."""
    id_pattern: str = ""
    """Regular expression with a group `id` that finds the id in names of a copy's files and members, for example
    'clip-(?P<id>[\\w-]{11})'. Default: the names of published copies and common downloaders."""
    splits: tuple[str, ...] = ("balanced_train", "unbalanced_train", "eval")
    """Splits to fetch and convert."""
    limit: int | None = None
    """Only the first so many segments of each split."""
    clips_per_shard: int = 1000
    """Segments planned per shard."""
    keep_audio: bool = False
    """Keep each clip's 16 kHz audio as FLAC beside its fbank, so that features can be recomputed without
    fetching (about 214 KB per clip)."""
    already_cut: bool = False
    """Loose media files hold the segment instead of the whole video. Members of tars, zips and parquet always do."""
    retry: tuple[FailureCategory, ...] = (FailureCategory.THROTTLED, FailureCategory.TRANSIENT)
    """Categories of failure that a rerun tries again."""
    max_in_flight: int = 64
    """Shard tasks handed to Ray at a time."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    rate_limit: RateLimitConfig = field(default_factory=RateLimitConfig)
    youtube: YouTubeConfig = field(default_factory=YouTubeConfig)

    def __post_init__(self) -> None:
        check_above_0(self, ("clips_per_shard", "max_in_flight", "limit"))
        if not self.splits:
            raise ConfigError("--splits is empty: name at least one, such as eval")
