"""Settings for preprocessing. Each field's docstring is its `--help` text."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.errors import ConfigError
from pipeline.records import FailureCategory


def check_above_0(config: object, names: Iterable[str], group: str = "") -> None:
    """Raise ConfigError, which names the flag, if a setting is 0 or less. None is accepted."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{group}{name.replace('_', '-')} must be above 0, found {value}")


@dataclass(frozen=True)
class FetchConfig:
    """Settings for fetching media."""

    deadline_s: float = 60.0
    """Maximum seconds for one attempt to fetch a clip."""
    max_attempts: int = 3
    """Maximum number of attempts per clip within one run. Only transient failures are retried."""
    max_total_attempts: int = 10
    """Maximum number of attempts per clip over all runs. Later runs skip clips that have failed this often with
    transient errors."""
    backoff_s: float = 0.5
    """Seconds to wait before the second attempt, with jitter. The wait doubles with each further attempt."""
    max_media_bytes: int = 256 * 2**20
    """Maximum size of a media file in bytes. Larger files fail with `too_large`. A worker holds up to `num_threads`
    files in memory."""
    num_threads: int = 8
    """Number of clips that a worker fetches concurrently, ahead of decoding. If a worker is killed, these clips are
    fetched again, together with up to 8 finished clips that were not stored yet."""
    proxies: str = ""
    """File that lists one proxy address per line. Each proxy has its own rate limit."""

    def __post_init__(self) -> None:
        names = ("deadline_s", "max_attempts", "max_total_attempts", "max_media_bytes", "num_threads")
        check_above_0(self, names, "fetch.")
        if self.backoff_s < 0:
            raise ConfigError(f"--fetch.backoff-s must not be negative, found {self.backoff_s}")


@dataclass(frozen=True)
class RateLimitConfig:
    """Rate limits for each address. An address is a node or a proxy."""

    clips_per_hour: int | None = None
    """Maximum clips per hour from one address, spread evenly with jitter; 0 means no limit. Default: 300 for YouTube
    (the limit of a guest session), unlimited elsewhere."""
    cooldown_s: float = 900.0
    """Initial cooldown of a throttled address, in seconds. It doubles each time the address is throttled again, until a
    clip arrives."""
    outage_cooldown_s: float = 30.0
    """Initial cooldown in seconds after several different clips in a row failed with outage errors (no connection,
    timeout, server error, access denied). These clips are fetched again, and the failed attempts do not count."""
    max_cooldown_s: float = 3600.0
    """Longest cooldown in seconds, even if the source requests a longer one."""
    max_idle_s: float = 7200.0
    """Stop if no clip has finished for this many seconds while all addresses are cooling down. The run ends normally if
    it was throttled, and with an error if the source was unreachable."""

    def __post_init__(self) -> None:
        if (self.clips_per_hour or 0) < 0:
            raise ConfigError(f"--rate-limit.clips-per-hour must not be negative, found {self.clips_per_hour}")
        check_above_0(self, ("cooldown_s", "outage_cooldown_s", "max_cooldown_s", "max_idle_s"), "rate-limit.")


@dataclass(frozen=True)
class SelectionConfig:
    """Settings for the selection of training clips."""

    exclude: tuple[str, ...] = ()
    """Exclude training clips that meet any of these conditions on their measures, such as "silence > 0.9",
    "bandwidth_hz < 4500", "codec == mp3 and bit_rate < 32000", duplicate_of_eval or duplicate. Evaluation clips are
    never excluded. See docs/quality.md."""


@dataclass(frozen=True)
class YouTubeConfig:
    """Settings for yt-dlp on YouTube. Secrets are passed as file paths, so they never appear in logs."""

    cookies: str = ""
    """Cookie file in Netscape format (`cookies.txt`). Each process uses its own copy."""
    po_tokens: str = ""
    """File with PO tokens, each in the form CLIENT.CONTEXT+TOKEN."""
    clients: tuple[str, ...] = ()
    """Player clients to impersonate, such as web. YouTube refuses some videos to some clients. Default: yt-dlp's
    choice."""
    js_runtime: str = ""
    """JavaScript runtime for YouTube's player, as NAME or NAME:PATH, such as node:/usr/bin/node. Default: deno, which
    can be installed with `pip install deno`."""
    impersonate: str = ""
    """Browser to imitate in TLS and headers, such as chrome or safari. This avoids some "too many requests" errors and
    needs `pip install '.[impersonate]'`."""
    source_address: str = ""
    """Local address to send requests from, on machines with several addresses."""
    videos_per_process: int = 200
    """Number of videos after which a yt-dlp process is replaced. yt-dlp leaks about 1 MB per video."""

    def __post_init__(self) -> None:
        check_above_0(self, ["videos_per_process"], "youtube.")


@dataclass(frozen=True)
class PreprocessConfig:
    """Settings for preprocessing, from AudioSet's CSV files to a snapshot."""

    metadata: str = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
    """Folder or address that contains class_labels_indices.csv and {split}_segments.csv for each split."""
    media: tuple[str, ...] = ()
    """Sources of media, in order of preference. Copies of AudioSet can be a folder, an s3:// prefix, a repository such
    as hf://datasets/agkphysics/AudioSet, or a pattern such as s3://bucket/**/*.tar. They contain tars, zips, parquet
    files, or files named by id. The last source can also be `youtube`, an address such as http://mirror/{ytid}.webm
    (with {start_ms}, {end_ms} and {split} if needed), or a table media.csv with the columns id,path."""
    id_pattern: str = ""
    """Regular expression with a group `id` that finds the id in the names of a copy's files and members, for example
    'clip-(?P<id>[\\w-]{11})'. By default, the names used by published copies and common downloaders are recognised."""
    splits: tuple[str, ...] = ("balanced_train", "unbalanced_train", "eval")
    """Splits to fetch and convert."""
    limit: int | None = None
    """Process only the first `limit` segments of each split."""
    clips_per_shard: int = 1000
    """Number of segments planned per shard."""
    keep_audio: bool = False
    """Also store each clip's 16 kHz audio as FLAC (about 214 KB per clip), so that features can be recomputed without
    fetching the clips again."""
    already_cut: bool = False
    """Loose media files contain only the segment instead of the whole video. Members of tars, zips and parquet files
    always contain only the segment."""
    retry: tuple[FailureCategory, ...] = (FailureCategory.THROTTLED, FailureCategory.TRANSIENT)
    """Categories of failures to retry when the command runs again."""
    max_in_flight: int = 64
    """Maximum number of Ray tasks in flight."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    rate_limit: RateLimitConfig = field(default_factory=RateLimitConfig)
    youtube: YouTubeConfig = field(default_factory=YouTubeConfig)

    def __post_init__(self) -> None:
        check_above_0(self, ("clips_per_shard", "max_in_flight", "limit"))
        if not self.splits:
            raise ConfigError("--splits is empty: name at least one, such as eval")
