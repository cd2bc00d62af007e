"""Settings of the commands about models, and of MLflow's pages."""

from dataclasses import dataclass

import tyro

from jobs.launch.config.common import Input


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
