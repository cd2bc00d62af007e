"""Settings of the trainings on own sounds and on published sets of recordings."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from ast_model.config import ASTConfig, TrainConfig
from jobs.command_line.settings import NO_PREFIX, Data, Exists, Input, RayConfig, Selection
from pipeline.config import PreprocessConfig, SelectionConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """Settings of a job for a published set of recordings."""

    preset: tyro.conf.Suppress[str]
    data: Input = ""
    """The official folder, unpacked; empty to fetch it."""
    archive: str
    """Address that the set is fetched from."""
    digest: str
    """sha256 or md5 of the archive; nothing is compared if empty."""
    root: str
    """Folder of the store. A relative one is taken from the current folder, in a Ray job from ~/audioset-ast."""
    resume: str = ""
    """Run to go on with, by the same command otherwise; empty for a new one."""
    model: ASTConfig = field(default_factory=ASTConfig)
    train: Annotated[TrainConfig, NO_PREFIX] = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))


@dataclass(frozen=True, kw_only=True)
class FoldsConfig(PublishedConfig):
    """Settings of a job for a set with fixed folds."""

    num_folds = 0
    """Of the official set; no setting."""
    folds: tuple[int, ...]
    """Folds to test on, each after training on the others."""
    choose: Literal["last", "best_on_test"] = "last"
    """Epoch that counts: the last one, or the one whose mean accuracy on the test folds is best, as some papers do."""

    def __post_init__(self) -> None:
        known = set(range(1, self.num_folds + 1))
        if not self.folds or not set(self.folds) <= known or len(set(self.folds)) != len(self.folds):
            raise ConfigError(f"--folds must be some of 1 to {self.num_folds}, each once, found {self.folds}")


@dataclass(frozen=True, kw_only=True)
class ESC50Config(FoldsConfig):
    """All settings of the job. GitHub packs the archive on demand, so there is no official digest."""

    num_folds = 5
    preset: tyro.conf.Suppress[str] = "esc50"
    archive: str = "https://github.com/karoldvl/ESC-50/archive/master.zip"
    digest: str = ""
    root: str = "data/esc50"
    folds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Folds to test on, each after training on the others."""


@dataclass(frozen=True, kw_only=True)
class UrbanSound8KConfig(FoldsConfig):
    """All settings of the job. The default digest is Zenodo's, as soundata checks it; the licence is CC BY-NC."""

    num_folds = 10
    preset: tyro.conf.Suppress[str] = "urbansound8k"
    archive: str = "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz"
    digest: str = "9aa69802bbf37fb986f71ec1483a196e"
    root: str = "data/urbansound8k"
    folds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    """Folds to test on, each after training on the others."""


@dataclass(frozen=True, kw_only=True)
class SpeechCommandsConfig(PublishedConfig):
    """All settings of the job. The default digest is the one that torchaudio checks."""

    preset: tyro.conf.Suppress[str] = "speechcommands"
    archive: str = "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
    digest: str = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
    root: str = "data/speechcommands"
    choose: Literal["best_on_valid", "last"] = "best_on_valid"
    """Epoch that is tested on the testing list."""


@dataclass(frozen=True, kw_only=True)
class FSD50KConfig(PublishedConfig):
    """All settings of the job. Zenodo holds the set as split zips, whose digests are those that soundata checks."""

    preset: tyro.conf.Suppress[str] = "fsd50k"
    archive: str = "https://zenodo.org/records/4060432/files"
    """Address below which the parts lie by their official names."""
    digest: tyro.conf.Suppress[str] = ""
    root: str = "data/fsd50k"
    choose: Literal["best_on_valid", "last"] = "best_on_valid"
    """Epoch that is tested on the evaluation set."""


@dataclass(frozen=True)
class VGGSoundConfig:
    """All settings of the job: AudioSet's, and a table in place of AudioSet's."""

    preset: tyro.conf.Suppress[str] = "vggsound"
    table: Annotated[str, Exists("download the official vggsound.csv, or leave --table out to fetch it")] = ""
    """The official vggsound.csv; empty to fetch it."""
    archive: str = "https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv"
    """Where the table is fetched from."""
    digest: str = ""
    """sha256 or md5 of the table; nothing is compared if empty. There is no official one."""
    root: str = "data/vggsound"
    """Folder or s3:// address of the store. A relative one is taken from the current folder, in a Ray job from
    ~/audioset-ast."""
    data: Data = field(default_factory=lambda: PreprocessConfig(splits=("train", "test")))
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))
    resume: str = ""
    """Run to go on with, on its own snapshot and by the same command otherwise; empty for a new one."""
    selection: Selection = field(default_factory=SelectionConfig)
