"""Settings of the preprocessing. The docstring under a field is its `--help` text."""

from dataclasses import dataclass, field

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class FetchConfig:
    """How media are had."""

    deadline_s: float = 60.0
    """Seconds that one attempt at one clip may take, whatever the other side does."""
    max_attempts: int = 3
    """Attempts at a clip within a run while its failure is transient."""
    backoff_s: float = 0.5
    """Pause before the second attempt; it doubles with each further one, with jitter."""
    max_media_bytes: int = 512 * 2**20
    """A larger file is not fetched but counted as too large."""
    num_threads: int = 8
    """Clips of a shard that are fetched at the same time, ahead of decoding."""

    def __post_init__(self) -> None:
        for name in ("deadline_s", "max_attempts", "max_media_bytes", "num_threads"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, found {getattr(self, name)}")
        if self.backoff_s < 0:
            raise ConfigError(f"backoff_s must not be negative, found {self.backoff_s}")


@dataclass(frozen=True)
class PreprocessConfig:
    """From AudioSet's CSV files to a snapshot."""

    metadata: str = "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv"
    """Folder or address that holds {split}_segments.csv for each split, and class_labels_indices.csv."""
    media: str = ""
    """Where the media are: a folder (local or s3://) of files named by id, or an address with {ytid} in it
    such as http://mirror/{ytid}.webm ({start_ms}, {end_ms} and {split} are filled in too)."""
    splits: tuple[str, ...] = ("balanced_train", "unbalanced_train", "eval")
    """Splits to fetch and convert."""
    limit: int | None = None
    """Only the first so many segments of each split."""
    clips_per_shard: int = 1000
    """Segments planned per shard."""
    keep_audio: bool = False
    """Keep each clip's 16 kHz audio as FLAC beside its fbank, so that features can be made anew without
    fetching (about 214 KB per clip)."""
    already_cut: bool = False
    """The media hold the segment alone, not the whole video."""
    max_in_flight: int = 64
    """Shard tasks handed to Ray at a time."""
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        for name in ("clips_per_shard", "max_in_flight"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, found {getattr(self, name)}")
        if self.limit is not None and self.limit <= 0:
            raise ConfigError(f"limit must be above 0, found {self.limit}")
        if not self.splits:
            raise ConfigError("splits is empty: name at least one, such as eval")
