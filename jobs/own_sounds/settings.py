"""Settings for `finetune` and `search`, the commands that work on the user's own sounds."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from jobs.command_line.settings import NO_PREFIX, Input, RayConfig, Selection
from pipeline.config import SelectionConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings for `finetune`. Unset values are chosen from the data."""

    preset: tyro.conf.Suppress[str] = "finetune"
    data: Input = ""
    """A table with the columns path,labels, a folder with one folder of files per class, or annotations by Raven or
    Audacity: a file, or a folder with such files beside the recordings."""
    init: str = ""
    """Initial weights: a checkpoint, a Hugging Face name, an official .pth, or DeiT's. Empty: random weights."""
    size: Literal["nano", "tiny", "small", "base", "eat", "audiomosaic", "audiomae"] | None = None
    """Model size. An AST given by --init keeps its own size. Default: nano for random weights, otherwise base. Use eat,
    audiomosaic or audiomae for pre-trained weights of EAT or SSLAM, AudioMosaic or AudioMAE."""
    head_only: Annotated[bool | None, tyro.conf.arg(metavar="| --no-head-only")] = None
    """Fit only the head on stored embeddings, in seconds instead of hours. Default: yes if there is no GPU or there are
    fewer than 2,000 training clips, unless epochs, batch size or learning rate are set."""
    root: str = "data/own"
    """Parent folder of the stores. Each set of sounds has its own store."""
    clip_s: float = 10.0
    """Maximum clip length in seconds. Longer files are cut into several clips, all with the file's labels."""
    eval_share: float = 0.2
    """Share of the files to hold out for evaluation, if the data has no splits."""
    group_by: str = ""
    """Regular expression that finds a file's group in its name, such as the speaker: `^(\\w+)_`. A group is never in
    two splits. Default: the column group of the table, or a group per file."""
    folds: int = 0
    """Number of folds for cross-validation, instead of a held-out share. Default: the column fold, if there is one."""
    num_epochs: int | None = None
    """Number of epochs. Default: from 40 for few clips to 5 for many; from 100 to 20 for random weights."""
    batch_size: int | None = None
    """Samples per step. Default: from 8 for few clips to 48 for many; 32 for random weights."""
    learning_rate: float | None = None
    """Peak learning rate. Default: 5e-5 with --init, 7e-4 for random weights."""
    mixup_probability: float | None = None
    """Share of the samples to mix with a second sample. Default: 0.5 with --init, 0 for random weights."""
    seed: int = 0
    """Seed of splits, random weights, draws and augmentation."""
    resume: str = ""
    """Name of a run to resume with otherwise the same command. Default: start a new run."""
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))
    selection: Selection = field(default_factory=SelectionConfig)

    @property
    def model_size(self) -> str:
        """The size or its default. From random weights, larger models learn less and take much longer."""
        return self.size or ("base" if self.init else "nano")

    def __post_init__(self) -> None:
        if not 0.1 <= self.clip_s <= 600:
            raise ConfigError(f"--clip-s must be between 0.1 and 600 s, found {self.clip_s}")
        if not 0 < self.eval_share < 1:
            raise ConfigError(f"--eval-share must be between 0 and 1, found {self.eval_share}")
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"--folds must be 0 or at least 2, found {self.folds}")
        try:
            re.compile(self.group_by)
        except re.error as error:
            raise ConfigError(f"--group-by: expected a regular expression, found {self.group_by!r}: {error}") from error
        if self.head_only and self.resume:
            raise ConfigError("--head-only has nothing to resume: omit --resume; finished embeddings are stored")


@dataclass(frozen=True)
class SearchConfig:
    """Settings for `search`."""

    checkpoint: str = ""
    """Folder of a checkpoint, Hugging Face folder or hub name, or official .pth. Empty: compare spectral statistics."""
    like: tuple[str, ...] = ()
    """Example files or folders of examples. The search uses the mean of their embeddings and skips these files."""
    label: str = ""
    """Class of the store to use as examples instead of --like."""
    audio: tuple[str, ...] = ()
    """Files and folders (recursive) to search. Default: search the store's clips."""
    root: str = "data/own"
    """Folder or s3:// address of the store. Embeddings of its clips are stored there as well."""
    snapshot: str = ""
    """Snapshot to search. Default: the latest."""
    num_results: int = 20
    """Number of nearest clips to show."""
    output: str = "neighbours.html"
    """HTML page to write, with players. A table is written next to it as .csv."""

    def __post_init__(self) -> None:
        if self.num_results < 1:
            raise ConfigError(f"--num-results must be at least 1, found {self.num_results}")
