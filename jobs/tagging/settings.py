"""Settings for `predict`."""

from dataclasses import dataclass
from typing import Literal

from ast_model.tagging.options import TaggingOptions
from jobs.command_line.settings import Input
from pipeline.config import check_above_0
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class PredictConfig(TaggingOptions):
    """Settings for tagging."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    audio: tuple[str, ...]
    """Files, addresses, folders and s3:// prefixes (searched at any depth), .tar files, and .txt files that list one of
    these per line."""
    labels: Input = ""
    """The class_labels_indices.csv for an official .pth, which contains no class names."""
    calibrated: bool = False
    """Use the checkpoint's calibration.json: return probabilities, and only classes above their thresholds."""
    format: Literal["text", "csv", "csv-excel", "jsonl", "parquet", "raven", "audacity"] = "text"
    """Output format: text for people, csv, jsonl or parquet for programs, csv-excel for Excel on Windows, or raven or
    audacity, which write one file per recording."""
    output: str = ""
    """Output file, or a folder for raven and audacity. Default for text and csv: the terminal. For many files, use
    --format parquet with a folder or s3:// prefix: Ray tags files in parallel, and the same command resumes an
    interrupted run."""
    embeddings: bool = False
    """Also store the embedding of each file or window. Needs --format parquet and a folder as --output."""
    files_per_task: int = 100
    """Number of files per Ray task. A kill loses at most one task per processor."""
    plot: str = ""
    """Folder for a PNG per file with its spectrogram and the strongest classes."""
    device: str = ""
    """cpu or cuda. Default: a GPU if available."""

    @property
    def is_parallel(self) -> bool:
        """True if Ray tags the files in groups and stores the results."""
        return self.format == "parquet" and bool(self.output) and not self.output.endswith(".parquet")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_0(self, ("files_per_task",))
        if not self.timeline and (self.window_s is not None or self.hop_s is not None):
            raise ConfigError("--window-s and --hop-s need --timeline: add it, or drop them")
        if not self.output and self.format not in ("text", "csv"):
            raise ConfigError(f"expected --output for --format {self.format}, found none: name a file or folder")
        if self.embeddings and not self.is_parallel:
            raise ConfigError(
                "--embeddings needs --format parquet and a folder as --output, such as tags/, found"
                f" --format {self.format} and {self.output or 'none'}"
            )
        if self.plot and self.is_parallel:
            raise ConfigError("--plot works only in a single process: drop it, or name a file as --output")
