"""Settings of fine-tuning and search."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from jobs.command_line.settings import NO_PREFIX, Input, RayConfig, Selection
from pipeline.config import SelectionConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class FinetuneConfig:
    """All settings of the job. What is not set follows from the data."""

    preset: tyro.conf.Suppress[str] = "finetune"
    data: Input = ""
    """A table with the columns path,labels, or a folder that holds a folder of files for each class."""
    init: str = ""
    """Weights to start from: a checkpoint, a Hugging Face name, an official .pth, or DeiT's; empty for random ones."""
    size: Literal["nano", "tiny", "small", "base", "eat"] = "base"
    """Size of the model; that of an AST that is started from counts more. nano is for training without a GPU, eat
    for EAT's and SSLAM's weights."""
    head_only: Annotated[bool | None, tyro.conf.arg(metavar="| --no-head-only")] = None
    """Fit only the head, on embeddings that are computed once and kept: seconds instead of hours. Unset: without a
    GPU, or with fewer than 2,000 training clips, unless epochs, batch size or learning rate are set."""
    views: int = 1
    """Of each clip with --head-only: more than one adds augmented ones, which take as long to embed again."""
    shots: tuple[int, ...] = ()
    """With --head-only: also measure heads fitted to so many clips per class, such as 1 5 20."""
    root: str = "data/own"
    """Folder below which each set of sounds has a store of its own."""
    clip_s: float = 10.0
    """Longest clip; longer files are cut into several, which all have the file's labels."""
    eval_share: float = 0.2
    """Share of the files that is kept for measuring, if there are no splits."""
    num_epochs: int | None = None
    """Unless set: 5 for many clips, up to 40 for few."""
    batch_size: int | None = None
    """Samples per step. Unless set: 8 for few clips, up to 48 for many."""
    learning_rate: float | None = None
    """Unless set: 5e-5 from weights, 5e-4 from random ones."""
    mixup_probability: float = 0.5
    """Share of samples that are mixed with another."""
    seed: int = 0
    """Seed of splits, weights, draws and augmentation."""
    resume: str = ""
    """Run to go on with, by the same command otherwise; empty for a new one."""
    ray: Annotated[RayConfig, NO_PREFIX] = field(default_factory=lambda: RayConfig("1", use_gpu=None))
    selection: Selection = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        if not 0.1 <= self.clip_s <= 600:
            raise ConfigError(f"--clip-s must be between 0.1 and 600 s, found {self.clip_s}")
        if not 0 < self.eval_share < 1:
            raise ConfigError(f"--eval-share must be between 0 and 1, found {self.eval_share}")
        if self.views < 1 or min(self.shots, default=1) < 1:
            raise ConfigError(f"--views and --shots must be at least 1, found {self.views} and {self.shots}")
        if self.head_only and self.resume:
            raise ConfigError("--head-only has nothing to resume: drop --resume; embeddings computed so far are kept")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search."""

    checkpoint: str
    """A checkpoint's folder, a Hugging Face folder or hub name, or an official .pth."""
    like: tuple[str, ...] = ()
    """Sounds to find others like: files, or folders of them. Several count by the mean of their embeddings."""
    label: str = ""
    """Class of the store, whose clips to find others like."""
    audio: tuple[str, ...] = ()
    """Files, and folders at any depth, to search in; the store's clips unless set."""
    root: str = "data/own"
    """Folder or s3:// address of the store. It keeps its clips' embeddings."""
    snapshot: str = ""
    """Snapshot of the store; the latest unless named."""
    num_results: int = 20
    """Nearest clips to show."""
    output: str = "neighbours.html"
    """Page to write, with players; the table lies beside it, as .csv."""

    def __post_init__(self) -> None:
        if self.num_results < 1:
            raise ConfigError(f"--num-results must be at least 1, found {self.num_results}")
