"""Settings for the commands on checkpoints and models."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from jobs.command_line.settings import Input, StoreRoot
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings for `evaluate`."""

    checkpoints: tuple[str, ...]
    """Folders, files or hub names, with any strides and lengths. The scores of several checkpoints are averaged."""
    root: StoreRoot = "data/demo"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Id of the snapshot. Default: the latest."""
    split: str = "eval"
    """Split to score."""
    clips: str = ""
    """List of clips to score: ast-19185, audiomosaic-19012, panns-18885, common-18781, or a file with one YouTube id
    per line. Default: all clips of the split."""
    output: str = ""
    """Folder for scores, tables and plots. Default: a new folder in ROOT/evaluations, or in ./evaluations for s3://."""
    classes: tuple[str, ...] = ()
    """Names of classes for the precision-recall plot. Default: the classes with the most clips."""
    bootstrap: int = 200
    """Number of resamples for the 95 % interval of mAP. Not used for accuracy."""
    batch_size: int = 16
    """Clips per forward pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.bootstrap < 2:
            raise ConfigError(
                f"--batch-size must be at least 1 and --bootstrap at least 2, found {self.batch_size} and"
                f" {self.bootstrap}"
            )


@dataclass(frozen=True)
class CalibrateConfig:
    """Settings for `calibrate`."""

    checkpoint: str
    """Folder of a checkpoint, Hugging Face folder or hub name, or official .pth."""
    root: str = "data/demo"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Id of the snapshot. Default: the latest."""
    split: str = "eval"
    """Split to fit; it must not be a training split of the checkpoint."""
    method: Literal["platt", "temperature", "none"] = "platt"
    """Scaling of the logits: platt fits each class, temperature fits a single factor (the only choice for
    cross-entropy), and none chooses only thresholds."""
    precision: float | None = None
    """Target precision of the thresholds. Default: thresholds with the best F1."""
    output: str = ""
    """Folder for calibration.json. Default: the folder of the checkpoint."""
    batch_size: int = 16
    """Clips per forward pass."""

    def __post_init__(self) -> None:
        if self.precision is not None and not 0 < self.precision <= 1:
            raise ConfigError(f"--precision must be above 0 and at most 1, found {self.precision}")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, found {self.batch_size}")


MAX_COMPARED_RUNS = 26
"""Maximum number of runs to compare. Each run is named by a letter."""


@dataclass(frozen=True)
class CompareConfig:
    """Settings for `compare`."""

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN RUN…")]]
    """Runs to compare with the first run: MLflow ids, names, folders, or folders written by jobs/evaluate.py."""
    root: str = "data/demo"
    """Folder or s3:// address of the store. MLFLOW_TRACKING_URI, if set, replaces the store's own database."""
    output: str = "comparison.html"
    """File for the HTML page."""

    def __post_init__(self) -> None:
        if self.runs is not tyro.MISSING and not 2 <= len(set(self.runs)) <= MAX_COMPARED_RUNS:
            raise ConfigError(
                f"expected two to {MAX_COMPARED_RUNS} runs to compare, found {', '.join(self.runs) or 'none'}"
            )


@dataclass(frozen=True)
class ExportConfig:
    """Settings for `export`."""

    format: tyro.conf.Suppress[str]
    checkpoint: str
    """Folder of a checkpoint, Hugging Face folder or hub name, or official .pth."""
    output: str
    """Folder or file to create. It must not exist yet."""
    labels: Input = ""
    """class_labels_indices.csv for an official .pth, which contains no class names."""


@dataclass(frozen=True)
class ModelsCommand:
    """Settings that locate the registry."""

    root: str = "data/demo"
    """Folder or s3:// address of the store. MLFLOW_TRACKING_URI, if set, replaces the store's own database."""


@dataclass(frozen=True)
class ListModels(ModelsCommand):
    """List all versions, newest first, with result, run, snapshot and preprocessing runs."""

    snapshot: str = ""
    """List only versions trained on this snapshot."""


@dataclass(frozen=True)
class CompareVersions(ModelsCommand):
    """Print the difference in the main metric between two versions on their common clips."""

    version: str = "latest"
    """New version: a number, champion or latest."""
    against: str = "champion"
    """Version to compare with: a number, champion or latest."""


@dataclass(frozen=True)
class PromoteVersion(ModelsCommand):
    """Make a version the champion regardless of its metrics. Records the difference in the main metric."""

    version: str = tyro.MISSING
    """Version to promote: a number or latest."""


@dataclass(frozen=True)
class FetchModel(ModelsCommand):
    """Download a version as an MLflow model. Its checkpoint is in artifacts/checkpoint."""

    version: str = "champion"
    """Version to download: a number, champion or latest."""
    to: str = "model"
    """Folder to create."""


@dataclass(frozen=True)
class ExportVersion(ModelsCommand):
    """Write a version for the Hugging Face hub: weights, config and a model card from MLflow's records."""

    version: str = "champion"
    """Version to export: a number, champion or latest. The best and the averaged weights are separate versions."""
    to: str = tyro.MISSING
    """Folder to create. Its name becomes the model's name."""
    licence: str = ""
    """Identifier of the weights' licence, such as apache-2.0. Without one, the card says "Not stated"."""


@dataclass(frozen=True)
class PublishRun(ModelsCommand):
    """Publish the plots, tables and models of a finished run to MLflow, if that failed at the end of the training."""

    run: str = tyro.MISSING
    """MLflow id, name or folder of the run."""


@dataclass(frozen=True)
class UIConfig:
    """Serve MLflow's pages for a local store on 127.0.0.1, and open its runs. Training runs may log to this address."""

    root: str = "data/demo"
    """Folder of the store."""
    port: int = 5000
    """Port to listen on."""
    create: bool = False
    """Create the database if the store has none, so that training runs can log to this server."""
