"""Settings for the commands that train on AudioSet."""

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated

import tyro

from ast_model.config import ASTConfig, TrainConfig
from jobs.command_line.settings import NO_PREFIX, Data, RayConfig, Selection, StoreRoot
from pipeline.config import PreprocessConfig, SelectionConfig


@dataclass(frozen=True)
class AudioSetConfig:
    """Settings for the main job."""

    preset: tyro.conf.Suppress[str] = "audioset_full"
    root: str = "data/audioset"
    """Folder or s3:// address of the store. Relative to the current folder, or to ~/audioset-ast in a Ray job."""
    data: Data = field(default_factory=PreprocessConfig)
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=RayConfig)
    resume: str = ""
    """Run to resume on its own snapshot, with an otherwise identical command. Default: start a new run."""
    selection: Selection = field(default_factory=SelectionConfig)

    @property
    def data_name(self) -> str:
        return PurePath(self.root).name

    notify: str = ""
    """URL, @FILE with a URL, or program that receives a JSON summary at the end."""


@dataclass(frozen=True)
class TrainJobConfig:
    """Settings for `train`."""

    preset: tyro.conf.Suppress[str] = "demo"
    root: StoreRoot = "data/demo"
    """Folder or s3:// address of the store. Relative to the current folder, or to ~/audioset-ast in a Ray job."""
    snapshot: str = ""
    """Snapshot to train on. Default: the latest, or the resumed run's own."""
    resume: str = ""
    """Run to resume, with an otherwise identical command. Default: start a new run."""
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=RayConfig)
    selection: Selection = field(default_factory=SelectionConfig)

    @property
    def data_name(self) -> str:
        return PurePath(self.root).name

    notify: str = ""
    """URL, @FILE with a URL, or program that receives a JSON summary at the end."""
