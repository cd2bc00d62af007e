"""Settings that several jobs share, and marks of settings."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ast_model.config import DeviceType
from pipeline.config import PreprocessConfig, SelectionConfig
from pipeline.errors import ConfigError

MINIATURE = "miniature"


@dataclass(frozen=True)
class Exists:
    """Mark of a setting whose file or folder is looked for, if it is local, before anything is imported."""

    advice: str
    inside: str = ""
    """A name that the folder must contain."""


NO_PREFIX = tyro.conf.arg(name="")
"""Of a group whose flags stand without its name: `--workers`, not `--ray.workers`."""


Input = Annotated[str, Exists("name a file or folder that is there")]


StoreRoot = Annotated[
    str, Exists("name the --root of a store, or make one with jobs/audioset.py or jobs/preprocess.py")
]


Data = Annotated[PreprocessConfig, NO_PREFIX, tyro.conf.EnumChoicesFromValues]


Selection = Annotated[SelectionConfig, tyro.conf.arg(name="data")]
"""`--data.exclude`."""


@dataclass(frozen=True)
class RayConfig:
    """Ray Train settings."""

    workers: str = "2"
    """Ranks, each with one CPU or one GPU: a number, or 2:8 to go on with what is left when nodes are lost and to
    grow again when they come back."""
    use_gpu: Annotated[bool | None, tyro.conf.arg(metavar="| --no-use-gpu")] = False
    """Give each rank a GPU, also under torchrun. Unset: if the cluster has one."""
    max_failures: int = 3
    """Failures without a new checkpoint in between after which the training ends; while there is progress, it starts
    again from the newest one however often workers are lost. Nodes that announce their end don't count."""
    start_timeout_s: float = 600.0
    """Seconds to wait for the cluster to have the (least) workers."""

    def __post_init__(self) -> None:
        fewest, most = self.num_workers
        if not 1 <= fewest <= most:
            raise ConfigError(f"--workers must be a number above 0, or two such as 2:8, found {self.workers}")
        if self.max_failures < 0:
            raise ConfigError(f"--max-failures must not be negative, found {self.max_failures}")

    @property
    def num_workers(self) -> tuple[int, int]:
        """The fewest and the most."""
        parts = self.workers.split(":")
        if not (len(parts) in (1, 2) and all(part.isdecimal() for part in parts)):
            raise ConfigError(f"--workers must be a number, or two such as 2:8, found {self.workers!r}")
        return int(parts[0]), int(parts[-1])

    @property
    def device_type(self) -> DeviceType:
        return "cuda" if self.use_gpu else "cpu"

    @property
    def worker_resources(self) -> dict[str, float]:
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": 1}
