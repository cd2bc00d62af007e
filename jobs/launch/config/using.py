"""Settings of tagging, search and the service."""

from dataclasses import dataclass, field
from typing import Literal

from ast_model.service.limits import LOOPBACK, Limits
from jobs.launch.config.common import Input
from pipeline.config import check_above_0
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class PredictConfig:
    """Settings of tagging."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    audio: tuple[str, ...]
    """Files, addresses, folders and s3:// prefixes that are searched at any depth, .tar files, and .txt files with one
    of these per line."""
    labels: Input = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""
    top_k: int = 5
    """Classes shown of each file or window."""
    timeline: bool = False
    """Tag windows of each file instead of the whole."""
    window_s: float | None = None
    """Length of a window; the model's unless set."""
    hop_s: float | None = None
    """From one window's start to the next; half a window unless set."""
    calibrated: bool = False
    """Return probabilities, and only classes above their thresholds, by the checkpoint's calibration.json."""
    format: Literal["text", "csv", "jsonl", "parquet", "raven", "audacity"] = "text"
    """Text for people; tables for programs; selections for Raven and labels for Audacity, a file for each sound."""
    output: str = ""
    """File to write to, for Raven and Audacity a folder; text and CSV go to the terminal unless it is set. With
    --format parquet it may be a folder, too, or an s3:// prefix: then the files are tagged in parallel on Ray, and what
    is tagged is kept, so that the same command goes on where an interrupted one was. Name a folder for many files."""
    embeddings: bool = False
    """Keep the embedding of each file or window as well; needs such a folder."""
    files_per_task: int = 100
    """Files that a Ray task tags, and that a kill costs at most for each processor."""
    plot: str = ""
    """Folder to draw a PNG of each file into: its spectrogram, and the strongest classes below it."""
    device: str = ""
    """cpu or cuda; a GPU if there is one unless set."""

    @property
    def is_parallel(self) -> bool:
        """Whether files are tagged on Ray, in groups that are kept."""
        return self.format == "parquet" and bool(self.output) and not self.output.endswith(".parquet")

    def __post_init__(self) -> None:
        for name in ("top_k", "files_per_task"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, found {value}")
        if not self.timeline and (self.window_s is not None or self.hop_s is not None):
            raise ConfigError("--window-s and --hop-s belong to --timeline: add it, or leave them out")
        if not self.output and self.format not in ("text", "csv"):
            raise ConfigError(f"expected --output for --format {self.format}, found none: name a file or folder")
        if self.embeddings and not self.is_parallel:
            raise ConfigError(
                "--embeddings needs --format parquet and a folder as --output, such as tags/, found"
                f" --format {self.format} and {self.output or 'none'}"
            )
        if self.plot and self.is_parallel:
            raise ConfigError("--plot draws what one process tags: leave it out, or name a file as --output")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of the service."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, an official .pth, or models:/audioset-ast@champion,
    which is followed: a new champion is loaded beside the old one, and then takes over."""
    labels: Input = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""
    root: str = "data/demo"
    """Folder or s3:// address of the store whose registry models:/… is looked up in."""
    calibrated: bool = False
    """Answer with probabilities, and only classes above their thresholds, by the checkpoint's calibration.json."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs --token-file."""
    port: int = 8000
    """Port to listen on."""
    token_file: Input = ""
    """File whose first line every request must bring as Authorization: Bearer TOKEN."""
    num_replicas: int = 1
    """Copies of the model, each a process with a CPU, or with a GPU if --use-gpu is set."""
    use_gpu: bool = False
    """Give each copy a GPU."""
    batch_size: int = 16
    """Windows, of all requests at a copy, in one batch."""
    batch_wait_ms: float = 5.0
    """How long a batch that isn't full waits for more."""
    poll_s: float = 60.0
    """How often the registry is asked whether the alias has moved."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.token_file:
            raise ConfigError(
                f"expected --token-file for --host {self.host}, found none: whoever reaches the address could use the"
                " service; name a file that holds a token"
            )
        check_above_0(self, ("num_replicas", "batch_size", "poll_s"))


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    like: tuple[str, ...] = ()
    """Sounds to find others like: files, or folders of them. Several count by the mean of their embeddings."""
    label: str = ""
    """Class of the store, whose clips to find others like."""
    audio: tuple[str, ...] = ()
    """Files, and folders at any depth, to search in; the store's clips unless set."""
    root: str = "data/own"
    """Folder or s3:// address of the store. It keeps its clips' embeddings."""
    snapshot: str = ""
    """Snapshot of the store; the latest unless named."""
    num_results: int = 20
    """Nearest clips to show."""
    output: str = "neighbours.html"
    """Page to write, with players; the table lies beside it, as .csv."""

    def __post_init__(self) -> None:
        if self.num_results < 1:
            raise ConfigError(f"--num-results must be at least 1, found {self.num_results}")
