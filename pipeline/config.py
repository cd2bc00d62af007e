"""Preprocessing settings. Each field's docstring is its `--help` text."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.records import FailureCategory


def check_above_0(config: object, names: Iterable[str], group: str = "") -> None:
    """Raise ConfigError, naming the flag, if a setting is 0 or less. None is accepted."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{group}{name.replace('_', '-')} must be above 0, found {value}")


@dataclass(frozen=True)
class FetchConfig:
    """Settings for fetching media."""

    deadline_s: float = 60.0
    """Maximum seconds per attempt at a clip."""
    max_attempts: int = 3
    """Maximum attempts at a clip per run. Only transient failures are retried."""
    max_total_attempts: int = 10
    """Maximum attempts at a clip over all runs. Reruns skip clips with this many transient failures."""
    backoff_s: float = 0.5
    """Pause before the second attempt, with jitter; doubles with each further attempt."""
    max_media_bytes: int = 256 * 2**20
    """Maximum media size; larger files fail with `too_large`. A worker holds up to `num_threads` files in memory."""
    num_threads: int = 8
    """Number of clips that a shard fetches concurrently, ahead of decoding. A killed worker fetches them again, plus up
    to 8 finished clips that were not stored yet."""
    proxies: str = ""
    """File with one proxy address per line. Each proxy has its own rate limit."""

    def __post_init__(self) -> None:
        names = ("deadline_s", "max_attempts", "max_total_attempts", "max_media_bytes", "num_threads")
        check_above_0(self, names, "fetch.")
        if self.backoff_s < 0:
            raise ConfigError(f"--fetch.backoff-s must not be negative, found {self.backoff_s}")


@dataclass(frozen=True)
class RateLimitConfig:
    """Rate limits per address. An address is a node or a proxy."""

    clips_per_hour: int | None = None
    """Clips per hour and address, evenly spread with jitter; 0 for no limit. Default: 300 for YouTube (the limit of a
    guest session), unlimited elsewhere."""
    cooldown_s: float = 900.0
    """Initial cooldown of a throttled address, in seconds. It doubles with each further throttling until a clip
    arrives."""
    outage_cooldown_s: float = 30.0
    """Initial cooldown after several different clips in a row fail with outage errors (no connection, timeout, server
    error, access denied). These clips are fetched again without counting an attempt."""
    max_cooldown_s: float = 3600.0
    """Longest cooldown, even if the source requests a longer one."""
    max_idle_s: float = 7200.0
    """Stop after this long without a finished clip while all addresses cool down. A throttled run ends normally, and an
    unreachable source is an error."""

    def __post_init__(self) -> None:
        if (self.clips_per_hour or 0) < 0:
            raise ConfigError(f"--rate-limit.clips-per-hour must not be negative, found {self.clips_per_hour}")
        check_above_0(self, ("cooldown_s", "outage_cooldown_s", "max_cooldown_s", "max_idle_s"), "rate-limit.")


@dataclass(frozen=True)
class SelectionConfig:
    """Selection of training clips."""

    exclude: tuple[str, ...] = ()
    """Conditions on measures that exclude training clips, such as "silence > 0.9", "bandwidth_hz < 4500", "codec == mp3
    and bit_rate < 32000", duplicate_of_eval or duplicate. Evaluation clips are never excluded. See docs/quality.md."""


@dataclass(frozen=True)
class YouTubeConfig:
    """yt-dlp's settings for YouTube. Secrets are passed as file paths, so they never appear in logs."""

    cookies: str = ""
    """Cookie file in Netscape format (`cookies.txt`). Each process uses its own copy."""
    po_tokens: str = ""
    """File with PO tokens, each as CLIENT.CONTEXT+TOKEN."""
    clients: tuple[str, ...] = ()
    """Player clients to impersonate, such as web. Default: yt-dlp's choice. YouTube refuses some videos to some
    clients."""
    js_runtime: str = ""
    """JavaScript runtime for YouTube's player, as NAME or NAME:PATH, such as node:/usr/bin/node. Default: deno, which
    `pip install deno` installs."""
    impersonate: str = ""
    """Browser to imitate in TLS and headers, such as chrome or safari; needs `pip install '.[impersonate]'`. Avoids
    some "too many requests" errors."""
    source_address: str = ""
    """Local address from which to send requests, on machines with several addresses."""
    videos_per_process: int = 200
    """Number of videos after which a process is replaced. yt-dlp leaks about 1 MB per video."""

    def __post_init__(self) -> None:
        check_above_0(self, ["videos_per_process"], "youtube.")


@dataclass(frozen=True)
class PreprocessConfig:
    """Settings for all steps from AudioSet's CSV files to a snapshot."""

    metadata: str = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
    """Folder or address with {split}_segments.csv for each split and class_labels_indices.csv."""
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
    """Process only the first `limit` segments of each split."""
    clips_per_shard: int = 1000
    """Segments planned per shard."""
    keep_audio: bool = False
    """Store each clip's 16 kHz audio as FLAC beside its fbank (about 214 KB per clip), so that features can be
    recomputed without fetching."""
    already_cut: bool = False
    """Loose media files hold the segment instead of the whole video. Members of tars, zips and parquet always do."""
    retry: tuple[FailureCategory, ...] = (FailureCategory.THROTTLED, FailureCategory.TRANSIENT)
    """Failure categories to retry in a rerun."""
    max_in_flight: int = 64
    """Maximum number of Ray tasks in flight."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    rate_limit: RateLimitConfig = field(default_factory=RateLimitConfig)
    youtube: YouTubeConfig = field(default_factory=YouTubeConfig)

    def __post_init__(self) -> None:
        check_above_0(self, ("clips_per_shard", "max_in_flight", "limit"))
        if not self.splits:
            raise ConfigError("--splits is empty: name at least one, such as eval")
