"""Settings of the trainings on AudioSet, and of their teachers."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from ast_model.config import ASTConfig, TrainConfig
from jobs.launch.config.common import NO_PREFIX, Data, Input, RayConfig, Selection, StoreRoot
from pipeline.config import PreprocessConfig, SelectionConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class AudioSetConfig:
    """All settings of the main job."""

    preset: tyro.conf.Suppress[str] = "audioset_full"
    root: str = "data/audioset"
    """Folder or s3:// address of the store: metadata, shards, snapshots, runs. A relative one is taken from the
    current folder, in a Ray job from ~/audioset-ast."""
    data: Data = field(default_factory=PreprocessConfig)
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=RayConfig)
    resume: str = ""
    """Run to go on with, on its own snapshot and by the same command otherwise; empty for a new one."""
    selection: Selection = field(default_factory=SelectionConfig)


@dataclass(frozen=True)
class TrainJobConfig:
    """All settings of a training."""

    preset: tyro.conf.Suppress[str] = "demo"
    root: StoreRoot = "data/demo"
    """Folder or s3:// address of the store. A relative one is taken from the current folder, in a Ray job from
    ~/audioset-ast."""
    snapshot: str = ""
    """Snapshot to train on; the latest unless named, a resumed run's own."""
    resume: str = ""
    """Run to go on with, by the same command otherwise; empty for a new one."""
    model: ASTConfig = field(default_factory=ASTConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=RayConfig)
    selection: Selection = field(default_factory=SelectionConfig)


@dataclass(frozen=True)
class ImportTeacher:
    """Bring a teacher's scores into a store: matched by id, graded by the labels, as probabilities."""

    name: str
    """Name for --train.teachers."""
    scores: tuple[str, ...]
    """Files of one teacher, one after another: .npy with --index, parquet or HDF5 of ids and scores (or of values and
    the numbers of their classes, as CED's), .npz of jobs/evaluate.py."""
    index: Input = ""
    """Which row of a .npy is whose: {id: row}, pickled or JSON."""
    allow_unnamed_rows: bool = False
    """Take an index that does not name each row; rows without a name are left out."""
    labels: Input = ""
    """A class_labels_indices.csv of the columns; they are the snapshot's classes unless set."""
    stated_map: float | None = None
    """mAP that its publisher states; scores that reach less than half of it are refused."""
    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot whose clips and labels they are matched with; the latest unless named."""

    def __post_init__(self) -> None:
        if self.index and isinstance(self.scores, tuple) and len(self.scores) != 1:
            raise ConfigError(f"--index belongs to one .npy in --scores, found {len(self.scores)} files")
        if self.stated_map is not None and not 0 < self.stated_map < 1:
            raise ConfigError(f"--stated-map must be between 0 and 1, such as 0.495, found {self.stated_map}")


@dataclass(frozen=True)
class ListTeachers:
    """List the teachers of a store."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
