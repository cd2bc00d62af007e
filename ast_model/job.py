"""What to train, on what, and where the result goes; and whether that can work at all."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from ast_model.config import TrainConfig
from ast_model.evaluate import Normalisation
from ast_model.model import ASTConfig
from pipeline.errors import ConfigError, MismatchError, NoClipsError
from pipeline.fbank import NUM_MEL_BINS
from pipeline.snapshot import Snapshot, check_fingerprint
from pipeline.verify import check_sizes

log = logging.getLogger(__name__)

FAR_FROM_DATA = 0.25
"""In standard deviations: a recipe whose normalisation is further from the data's is warned about."""


class Tracker(Protocol):
    """Who is told how a training goes. Only the main rank tells."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None: ...


class Watch:
    """What a training is told from outside. This one is never told anything."""

    def is_stopping(self) -> bool:
        """Whether to save and leave. Asked on each rank at each step; one that says so is enough."""
        return False

    def is_in_danger(self) -> bool:
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
    """Unique name; the checkpoints lie in `runs/{run}/checkpoints` of the snapshot's store."""
    tracker: Tracker = field(compare=False)

    @property
    def folder(self) -> str:
        return f"runs/{self.run}/checkpoints"

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


def check_job(job: Job, world_size: int) -> None:
    """Raise, before anything costly, if the data can't be learnt from as the config says."""
    config, snapshot = job.config, job.snapshot
    check_fingerprint(snapshot)
    if world_size > config.global_batch_size:
        raise ConfigError(
            f"expected a global_batch_size of at least one sample per rank, found {config.global_batch_size} for"
            f" {world_size} ranks; raise it or train on fewer"
        )
    if len(snapshot.labels) != job.model.num_classes:
        raise MismatchError(
            f"expected a model of {len(snapshot.labels)} classes, as snapshot {snapshot.snapshot_id} has, found one of"
            f" {job.model.num_classes}; set model.num_classes"
        )
    if job.model.num_mel_bins != NUM_MEL_BINS:
        raise MismatchError(
            f"expected a model of {NUM_MEL_BINS} mel bins, as the fbanks have, found {job.model.num_mel_bins}; set"
            f" model.num_mel_bins={NUM_MEL_BINS}"
        )
    snapshot.rows_of((config.eval_split,))
    snapshot.rows_of(config.train_splits)
    counts = snapshot.class_counts(config.train_splits)
    empty = [name for name, count in zip(snapshot.labels.names, counts, strict=True) if count == 0]
    if empty and not config.allow_empty_classes:
        raise NoClipsError(
            f"{len(empty)} of {len(counts)} classes have no training clip: {', '.join(empty[:10])}. Remove them from"
            " class_labels_indices.csv, fetch clips for them, or set train.allow_empty_classes"
        )
    if config.loss == "ce" and (several := _rows_of_several_classes(snapshot, config.train_splits)):
        raise MismatchError(
            f"loss=ce needs exactly one class per clip, but {several} training clips of snapshot"
            f" {snapshot.snapshot_id} have another number; train with loss=bce"
        )
    if config.features == "waveform" and not snapshot.manifest["settings"]["keep_audio"]:
        raise MismatchError(
            f"features=waveform needs audio, but snapshot {snapshot.snapshot_id} was made without; preprocess with"
            " keep_audio, or train with features=fbank"
        )
    check_sizes(snapshot)
    norm = job.normalisation
    if abs(norm.mean - snapshot.mean) > FAR_FROM_DATA * snapshot.std or not 0.75 < norm.std / snapshot.std < 1.33:
        log.warning(
            "the recipe normalises with mean %.2f and std %.2f, but the data's are %.2f and %.2f; results will differ"
            " from the recipe's. Leave train.mean and train.std unset to use the data's",
            *(norm.mean, norm.std, snapshot.mean, snapshot.std),
        )


def _rows_of_several_classes(snapshot: Snapshot, splits: tuple[str, ...]) -> int:
    """Count the clips of some splits that don't have exactly one class."""
    return int((snapshot.targets(snapshot.rows_of(splits)).sum(axis=1) != 1).sum())


def check_same_job(job: Job, description: Mapping[str, Any]) -> None:
    """Raise MismatchError, naming what differs, unless a checkpoint is of this data and this model."""
    found = description["snapshot"]
    if found != job.snapshot.snapshot_id:
        raise MismatchError(
            f"run {job.run} was trained on snapshot {found}, not on {job.snapshot.snapshot_id}; resume it with its own"
            " snapshot, or start a new run"
        )
    model = asdict(job.model)
    differing = [name for name in model if description["model"].get(name) != model[name]]
    if differing:
        details = ", ".join(f"{name}: {description['model'].get(name)} then, {model[name]} now" for name in differing)
        raise MismatchError(f"run {job.run} trains another model ({details}); resume it as it was, or start a new run")
