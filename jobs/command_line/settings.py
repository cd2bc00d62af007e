"""Settings that several commands share, and annotations of settings."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from ast_model.config import DeviceType
from pipeline.config import PreprocessConfig, SelectionConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Exists:
    """Annotates a setting that names a file or folder. If it is local and missing, heavy imports are never reached."""

    advice: str
    """Advice to append to the error message."""
    inside: str = ""
    """File or folder that the folder must contain."""


NO_PREFIX = tyro.conf.arg(name="")
"""Annotation of a group whose flags omit the group's name: `--workers`, not `--ray.workers`."""


Input = Annotated[str, Exists("name an existing file or folder")]
"""An existing local file or folder, or a remote address."""

StoreRoot = Annotated[
    str, Exists("name the --root of a store, or make one with jobs/audioset.py or jobs/preprocess.py")
]
"""The root of an existing store."""

Data = Annotated[PreprocessConfig, NO_PREFIX, tyro.conf.EnumChoicesFromValues]
"""Preprocessing settings, as flags without a group."""

Selection = Annotated[SelectionConfig, tyro.conf.arg(name="data")]
"""Selection of training clips, as the flag `--data.exclude`."""


@dataclass(frozen=True)
class RayConfig:
    """Ray Train settings."""

    workers: str = "2"
    """Number of ranks, each with one CPU or GPU. A range such as 2:8 lets the training continue with fewer ranks when
    nodes are lost, and grow again when they return."""
    use_gpu: Annotated[bool | None, tyro.conf.arg(metavar="| --no-use-gpu")] = False
    """Give each rank a GPU, also under torchrun. Default: use GPUs if the cluster has any."""
    max_failures: int = 3
    """Number of consecutive failures without a new checkpoint after which training stops. Preempted nodes do not
    count."""
    start_timeout_s: float = 600.0
    """Maximum seconds to wait until the cluster can run the minimum number of workers."""

    def __post_init__(self) -> None:
        fewest, most = self.num_workers
        if not 1 <= fewest <= most:
            raise ConfigError(f"--workers must be a number above 0, or a range such as 2:8, found {self.workers}")
        if self.max_failures < 0:
            raise ConfigError(f"--max-failures must not be negative, found {self.max_failures}")

    @property
    def num_workers(self) -> tuple[int, int]:
        """Minimum and maximum number of ranks."""
        parts = self.workers.split(":")
        if not (len(parts) in (1, 2) and all(part.isdecimal() for part in parts)):
            raise ConfigError(f"--workers must be a number, or a range such as 2:8, found {self.workers!r}")
        return int(parts[0]), int(parts[-1])

    @property
    def device_type(self) -> DeviceType:
        return "cuda" if self.use_gpu else "cpu"

    @property
    def worker_resources(self) -> dict[str, float]:
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": 1}
