"""Settings for the commands on teachers."""

from dataclasses import dataclass

from jobs.command_line.settings import Input, StoreRoot
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class ImportTeacher:
    """Import a teacher's published scores. Matches ids to clips, grades the scores, and stores probabilities."""

    name: str
    """Name of the teacher for --train.teachers."""
    scores: tuple[str, ...]
    """Files of one teacher, as .npy with --index or as parquet with a column of ids and a column of score lists."""
    index: Input = ""
    """File that maps ids to rows of a .npy: {id: row}, as pickle or JSON."""
    allow_unnamed_rows: bool = False
    """Accept an index that does not cover all rows, and skip the other rows."""
    labels: Input = ""
    """class_labels_indices.csv with the classes of the columns. Default: the snapshot's classes."""
    stated_map: float | None = None
    """The publisher's mAP. Scores with less than half of this mAP are rejected."""
    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Id of the snapshot that provides clips and labels. Default: the latest."""

    def __post_init__(self) -> None:
        if self.index and isinstance(self.scores, tuple) and len(self.scores) != 1:
            raise ConfigError(f"--index needs exactly one .npy file in --scores, found {len(self.scores)} files")
        if self.stated_map is not None and not 0 < self.stated_map < 1:
            raise ConfigError(f"--stated-map must be between 0 and 1, such as 0.495, found {self.stated_map}")


@dataclass(frozen=True)
class MakeTeacher:
    """Score clips with one or several models, grade the mean of their scores by the labels, and store it."""

    name: str
    """Name of the teacher for --train.teachers."""
    checkpoints: tuple[str, ...]
    """Models: folders, files or hub names, of any shape and length. Their scores count equally."""
    split: tuple[str, ...] = ("balanced_train", "unbalanced_train")
    """Splits to score."""
    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Id of the snapshot that provides clips and labels. Default: the latest."""
    use_gpu: bool = False
    """Score on GPUs, one task per GPU."""
    batch_size: int = 16
    """Clips per forward pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, found {self.batch_size}")


@dataclass(frozen=True)
class ListTeachers:
    """List the teachers of a store."""

    root: StoreRoot = "data/audioset"
    """Folder or s3:// address of the store."""
