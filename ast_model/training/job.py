"""The description of a training run, and interfaces for its tracker and its stop requests."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ast_model.config import ASTConfig, TrainConfig
from ast_model.data.augment import Normalisation
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import RunFiles
from pipeline.store.storage import Store


class Tracker(Protocol):
    """Receives metrics and checkpoints. Used by the main rank only."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_late_params(self, facts: Mapping[str, str]) -> None: ...

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None: ...


AnyTracker = TypeVar("AnyTracker", bound=Tracker)


class Launcher:
    """The program that started the ranks. It requests stops and receives progress. This default does neither."""

    def is_stopping(self) -> bool:
        """Return True to save and stop. Polled on each rank at each step. A request on one rank stops all ranks."""
        return False

    def preemption_imminent(self) -> bool:
        """Return True once to save because a rank will be lost soon. Polled on all ranks with each log line."""
        return False

    def report_steps(self, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of a window of steps, on the main rank."""

    def report_epoch(self, metrics: Mapping[str, float], checkpoint: str) -> None:
        """Receive an entry of the history and the folder of its checkpoint in the store. All ranks call this together.

        The checkpoint may not be completely written yet.
        """


@dataclass(frozen=True)
class TrainingJob(Generic[AnyTracker]):
    """A training run: model, settings, data and destination of the results.

    Its pickle is small enough to send to each rank.
    """

    config: TrainConfig
    model: ASTConfig
    snapshot: Snapshot
    run: str
    """Unique name of the run. Its checkpoints are stored in `folder` of the snapshot's store."""
    tracker: AnyTracker = field(compare=False)
    title: str = ""
    """Readable name of the run, with size, initial weights, method and data."""

    def __reduce__(self):
        # Pickle the snapshot by name. Its index of two million clips is immutable, so processes read it from the store.
        snapshot = self.snapshot
        job = self.config, self.model, snapshot.store, snapshot.snapshot_id, self.run, self.tracker, self.title
        return _load_job, job

    @property
    def store(self) -> Store:
        return self.snapshot.store

    @property
    def folder(self) -> str:
        return RunFiles(self.run).checkpoints

    @property
    def average_folder(self) -> str:
        return RunFiles(self.run).average

    @property
    def normalisation(self) -> Normalisation:
        return normalisation_of(self.config, self.snapshot)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings to compare when the run resumes."""
        return {"snapshot": self.snapshot.snapshot_id, "model": self.model, "train": self.config}

    def describe(self) -> dict[str, Any]:
        """Describe the training, for the run's record and its checkpoints."""
        labels, norm = self.snapshot.labels, self.normalisation
        return {
            "model": asdict(self.model),
            "train": asdict(self.config),
            "labels": {"mids": labels.mids, "names": labels.names},
            "mean": norm.mean,
            "std": norm.std,
            "snapshot": self.snapshot.snapshot_id,
            "run": self.run,
            "title": self.title,
            "tracking_run": getattr(self.tracker, "run_id", None),
        }


def normalisation_of(config: TrainConfig, snapshot: Snapshot) -> Normalisation:
    """Return the mean and standard deviation for normalising, from the settings or else from the snapshot."""
    if config.mean is None or config.std is None:
        return Normalisation(snapshot.mean, snapshot.std)
    return Normalisation(config.mean, config.std)


def _load_job(
    config: TrainConfig, model: ASTConfig, store: Store, snapshot_id: str, run: str, tracker: AnyTracker, title: str
) -> TrainingJob[AnyTracker]:
    return TrainingJob(config, model, load_snapshot(store, snapshot_id), run, tracker, title)
