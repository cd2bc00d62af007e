"""What to train, on what, and where the result goes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ast_model.config import ASTConfig, TrainConfig
from ast_model.evaluation.evaluate import Normalisation
from pipeline.snapshots.snapshot import Snapshot


class Tracker(Protocol):
    """Who is told how a training goes. Only the main rank tells."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None: ...


class StopSignal:
    """What a training is told from outside. This one is never told anything."""

    def is_stopping(self) -> bool:
        """Whether to save and leave. Asked on each rank at each step; one that says so is enough."""
        return False

    def preemption_imminent(self) -> bool:
        """Whether a rank will be lost soon, so that it is time to save. Asked on all ranks with each line of
        metrics; it should say so once."""
        return False


@dataclass(frozen=True)
class Job:
    """What to train, on what, and where the result goes."""

    config: TrainConfig
    model: ASTConfig
    snapshot: Snapshot
    run: str
    """Unique name; the checkpoints lie in `folder` of the snapshot's store."""
    tracker: Tracker = field(compare=False)

    @property
    def folder(self) -> str:
        return f"runs/{self.run}/checkpoints"

    @property
    def average_folder(self) -> str:
        return f"runs/{self.run}/average"

    @property
    def normalisation(self) -> Normalisation:
        if self.config.mean is None or self.config.std is None:
            return Normalisation(self.snapshot.mean, self.snapshot.std)
        return Normalisation(self.config.mean, self.config.std)

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint says of the training it belongs to."""
        labels, norm = self.snapshot.labels, self.normalisation
        return {
            "model": asdict(self.model),
            "train": asdict(self.config),
            "labels": {"mids": labels.mids, "names": labels.names},
            "mean": norm.mean,
            "std": norm.std,
            "snapshot": self.snapshot.snapshot_id,
            "run": self.run,
            "tracking_run": getattr(self.tracker, "run_id", None),
        }
