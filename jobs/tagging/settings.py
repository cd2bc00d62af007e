"""Settings of `predict`."""

from dataclasses import dataclass
from typing import Literal

from jobs.command_line.settings import Input
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
