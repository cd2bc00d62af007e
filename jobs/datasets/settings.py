"""Settings for the commands for published data sets."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ast_model.config import ASTConfig, TrainConfig
from jobs.command_line.settings import NO_PREFIX, Data, Exists, Input, RayConfig, Selection
from pipeline.config import PreprocessConfig, SelectionConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Dataset:
    """Name, reader and metric of a published data set."""

    name: str
    reader: str
    """Function that reads the official folder, as `module:function`, so that `--help` need not import it."""
    marker: str
    """File that identifies the official folder, relative to that folder."""
    fetcher: str = ""
    """Function, as `module:function`, that downloads several archives; empty for a single archive."""
    num_folds: int = 0
    """Number of official folds; 0 for a set with official splits."""
    metric: Literal["accuracy", "mAP"] = "accuracy"


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Settings for commands that train on a published data set."""

    dataset: tyro.conf.Suppress[Dataset]
    data: Input = ""
    """The unpacked official folder. Default: download it."""
    archive: str
    """Address to download the data set from."""
    digest: str = ""
    """Expected sha256 or md5 of the archive. Empty: do not verify it."""
    root: str
    """Folder of the store. Relative to the current folder, or to ~/audioset-ast in a Ray job."""
    resume: str = ""
    """Name of a run to resume with otherwise the same command. Default: start a new run."""
    model: ASTConfig = field(default_factory=ASTConfig)
    train: Annotated[TrainConfig, NO_PREFIX] = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))

    @property
    def preset(self) -> str:
        return self.dataset.name

    @property
    def data_name(self) -> str:
        return self.dataset.name


@dataclass(frozen=True, kw_only=True)
class FoldsConfig(DatasetConfig):
    """Settings for commands that cross-validate over official folds."""

    folds: tuple[int, ...]
    """Folds to test on, each after training on all other folds."""
    choose: Literal["last", "best_on_test"] = "last"
    """Epoch to report: the last epoch, or the epoch with the best mean accuracy on the test folds, as in some
    papers."""

    def __post_init__(self) -> None:
        known = set(range(1, self.dataset.num_folds + 1))
        if not self.folds or not set(self.folds) <= known or len(set(self.folds)) != len(self.folds):
            raise ConfigError(f"--folds must be some of 1 to {self.dataset.num_folds}, each once, found {self.folds}")


@dataclass(frozen=True, kw_only=True)
class OfficialSplitsConfig(DatasetConfig):
    """Settings for commands for data sets with official training, validation and test splits."""

    choose: Literal["best_on_valid", "last"] = "best_on_valid"
    """Epoch to score on the official test split."""


@dataclass(frozen=True, kw_only=True)
class FSD50KConfig(OfficialSplitsConfig):
    """Settings for the FSD50K command. It needs no --digest, because its reader knows the digest of each archive."""

    archive: str = "https://zenodo.org/records/4060432/files"
    """Address of the folder that contains the official archives."""
    digest: tyro.conf.Suppress[str] = ""


@dataclass(frozen=True)
class VGGSoundConfig:
    """Settings for the VGGSound command: the main job's, with VGGSound's table instead of AudioSet's metadata."""

    preset: tyro.conf.Suppress[str] = "vggsound"
    table: Annotated[str, Exists("download the official vggsound.csv, or omit --table to fetch it")] = ""
    """The official vggsound.csv. Default: download it."""
    archive: str = "https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv"
    """Address to download the table from."""
    digest: str = ""
    """Expected sha256 or md5 of the table. No official digest exists. Empty: do not verify it."""
    root: str = "data/vggsound"
    """Folder or s3:// address of the store. Relative to the current folder, or to ~/audioset-ast in a Ray job."""
    data: Data = field(default_factory=lambda: PreprocessConfig(splits=("train", "test")))
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))
    resume: str = ""
    """Name of a run to resume, on its own snapshot, with otherwise the same command. Default: start a new run."""
    selection: Selection = field(default_factory=SelectionConfig)
