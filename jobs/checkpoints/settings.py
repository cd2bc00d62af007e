"""Settings of the commands on checkpoints and models."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jobs.command_line.settings import Input, StoreRoot
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


@dataclass(frozen=True)
class ExportConfig:
    """Settings of an export."""

    format: tyro.conf.Suppress[str]
    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    output: str
    """The folder or file to write; nothing may be there."""
    labels: Input = ""
    """The class_labels_indices.csv of an official .pth, which names no classes."""


@dataclass(frozen=True)
class ModelsCommand:
    """Location of the models."""

    root: str = "data/demo"
    """Folder or s3:// address of the store; MLFLOW_TRACKING_URI names the server unless its own database is meant."""


@dataclass(frozen=True)
class ListModels(ModelsCommand):
    """Print all versions, newest first, with run, snapshot, preprocessing runs and mAP."""

    snapshot: str = ""
    """Only those trained on this snapshot."""


@dataclass(frozen=True)
class CompareVersions(ModelsCommand):
    """Print by how much a version is better than another, on the clips that both were measured on."""

    version: str = "latest"
    """Number, champion or latest."""
    against: str = "champion"
    """Number, champion or latest."""


@dataclass(frozen=True)
class PromoteVersion(ModelsCommand):
    """Make a version the champion, whatever the figures say; what they say is noted."""

    version: str = tyro.MISSING
    """Number or latest."""


@dataclass(frozen=True)
class FetchModel(ModelsCommand):
    """Copy a model to a folder, as MLflow loads and serves it; its checkpoint is in artifacts/checkpoint."""

    version: str = "champion"
    """Number, champion or latest."""
    to: str = "model"
    """Folder to make."""


@dataclass(frozen=True)
class ExportVersion(ModelsCommand):
    """Write a version for the Hugging Face hub: weights, config and a card of what MLflow knows of it."""

    version: str = "champion"
    """Number, champion or latest; a run's best and averaged weights are versions of their own."""
    to: str = tyro.MISSING
    """Folder to make; its name is the model's."""
    licence: str = ""
    """Identifier of the weights' licence, such as apache-2.0; the card says so if it is not stated."""


@dataclass(frozen=True)
class PublishRun(ModelsCommand):
    """Bring a finished run's pictures, tables and models to MLflow, where that failed before."""

    run: str = tyro.MISSING
    """MLflow's id, the run's name there, or its folder in the store."""


@dataclass(frozen=True)
class UIConfig:
    """Serve MLflow's pages of a local store on 127.0.0.1, and show its runs. Trainings may log to the same address."""

    root: str = "data/demo"
    """Folder of the store."""
    port: int = 5000
    """Port to listen on."""
    create: bool = False
    """Begin a database where the store has none, for a server that trainings are to log to."""
