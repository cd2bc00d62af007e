"""Settings of evaluations, calibrations and comparisons."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jobs.launch.config.common import StoreRoot
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of an evaluation."""

    checkpoints: tuple[str, ...]
    """Folders, files or hub names, of any strides and lengths. Several are an ensemble: the mean of their scores."""
    root: StoreRoot = "data/demo"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot to take clips from; the latest unless named."""
    split: str = "eval"
    """Split to score."""
    output: str = ""
    """Folder for scores, tables and plots; a new one in ROOT/evaluations, or ./evaluations for s3://, unless set."""
    classes: tuple[str, ...] = ()
    """Classes to draw precision against recall of, by name; those with the most clips unless named."""
    bootstrap: int = 0
    """Resamples for the 95 % interval of mAP; 0 for none."""
    batch_size: int = 16
    """Clips scored at a time."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.bootstrap < 0 or self.bootstrap == 1:
            raise ConfigError(
                f"--batch-size must be at least 1 and --bootstrap 0 or at least 2, found {self.batch_size} and"
                f" {self.bootstrap}"
            )


@dataclass(frozen=True)
class CalibrateConfig:
    """Settings of a calibration."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    root: str = "data/demo"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot to take clips from; the latest unless named."""
    split: str = "eval"
    """Split to fit to; none that the checkpoint was trained on."""
    method: Literal["platt", "temperature", "none"] = "platt"
    """Scale the logits per class, or all by one temperature (always for cross-entropy), or only choose thresholds."""
    precision: float | None = None
    """Precision that thresholds aim at; the best F1 unless set."""
    output: str = ""
    """Folder for calibration.json; the checkpoint's own unless set."""
    batch_size: int = 16
    """Clips scored at a time."""

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision <= 1:
            raise ConfigError(f"--precision must be above 0 and at most 1, found {self.precision}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, found {self.batch_size}")


MAX_COMPARED_RUNS = 26
"""Each is named by a letter."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings of a comparison of runs."""

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN RUN…")]]
    """Runs; each is compared with the first."""
    root: str = "data/demo"
    """Folder or s3:// address of the store; MLFLOW_TRACKING_URI names the server unless its own database is meant."""
    output: str = "comparison.html"
    """File to write the page to."""

    def __post_init__(self) -> None:
        if self.runs is not tyro.MISSING and not 2 <= len(set(self.runs)) <= MAX_COMPARED_RUNS:
            raise ConfigError(
                f"expected two to {MAX_COMPARED_RUNS} runs to compare, found {', '.join(self.runs) or 'none'}"
            )
