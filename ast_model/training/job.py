"""A training: model, settings, data, and where the results go."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ast_model.config import ASTConfig, TrainConfig
from ast_model.data.augment import Normalisation
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store


class Tracker(Protocol):
    """Receiver of metrics and checkpoints. Only the main rank logs."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_facts(self, facts: Mapping[str, str]) -> None: ...

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None: ...


AnyTracker = TypeVar("AnyTracker", bound=Tracker)


class StopSignal:
    """Wishes from outside that a training asks for. This one never has any."""

    def is_stopping(self) -> bool:
        """Whether to save and stop. Asked on each rank at each step; one rank that says so is enough."""
        return False

    def preemption_imminent(self) -> bool:
        """Whether a rank will be lost soon, so that it is time to save. Asked on all ranks with each log line; it
        should say so once."""
        return False


@dataclass(frozen=True)
class TrainingJob(Generic[AnyTracker]):
    """A training: model, settings, data, and where the results go.

    Small once pickled, so that it can travel to each rank.
    """

    config: TrainConfig
    model: ASTConfig
    snapshot: Snapshot
    run: str
    """Unique name; the checkpoints lie in `folder` of the snapshot's store."""
    tracker: AnyTracker = field(compare=False)

    def __reduce__(self):
        # An index of two million clips travels by name: each process reads it from the store, where it never changes.
        snapshot = self.snapshot
        return _load_job, (self.config, self.model, snapshot.store, snapshot.snapshot_id, self.run, self.tracker)

    @property
    def store(self) -> Store:
        return self.snapshot.store

    @property
    def folder(self) -> str:
        return f"runs/{self.run}/checkpoints"

    @property
    def average_folder(self) -> str:
        return f"runs/{self.run}/average"

    @property
    def normalisation(self) -> Normalisation:
        return normalisation_of(self.config, self.snapshot)

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the record that a resumed run is compared by."""
        return {"snapshot": self.snapshot.snapshot_id, "model": self.model, "train": self.config}

    def describe(self) -> dict[str, Any]:
        """Return what the run's record and its checkpoints say of the training they belong to."""
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


def normalisation_of(config: TrainConfig, snapshot: Snapshot) -> Normalisation:
    """Return the mean and standard deviation to normalise with: the settings', or else the snapshot's."""
    if config.mean is None or config.std is None:
        return Normalisation(snapshot.mean, snapshot.std)
    return Normalisation(config.mean, config.std)


def _load_job(
    config: TrainConfig, model: ASTConfig, store: Store, snapshot_id: str, run: str, tracker: AnyTracker
) -> TrainingJob[AnyTracker]:
    return TrainingJob(config, model, load_snapshot(store, snapshot_id), run, tracker)
