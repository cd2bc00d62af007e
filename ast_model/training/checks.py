"""Whether a training can work at all: asked before anything costly, by the driver and by each rank."""

import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from ast_model.checkpoints.checkpoint import LoopState
from ast_model.config import ASTConfig, TrainConfig, flag_of, flatten
from ast_model.data.sampling import check_num_draws, num_steps_of, rank_slice
from ast_model.teachers.store import Teachers
from ast_model.training.job import Job
from pipeline.errors import MismatchError, NoClipsError
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint
from pipeline.snapshots.verify import verify_sizes

log = logging.getLogger(__name__)

PLAN_SETTINGS = (
    "train_splits eval_split draws_per_epoch sampler weight_count_offset group_draws global_batch_size seed teachers"
    " teacher_share augment.mixup_probability augment.mixup_alpha average_last_epochs"
).split()
"""Settings that decide which samples come when: a run keeps them to its end. Others may be changed at a resume."""

FAR_FROM_DATA = 0.25
"""In standard deviations: a recipe whose normalisation is further from the data's is warned about."""


def check_ranks(config: TrainConfig, num_ranks: int) -> None:
    """Raise ConfigError if there are more ranks than samples in a step."""
    rank_slice(0, config.global_batch_size, 0, num_ranks)


def check_training(config: TrainConfig, model: ASTConfig, snapshot: Snapshot) -> None:
    """Raise, before anything costly, if training cannot start with this data as the config says."""
    # From what costs nothing to what asks the store.
    check_fingerprint(snapshot)
    _check_model(config, model, snapshot)
    snapshot.rows_of((config.eval_split,))
    _check_clips(config, snapshot)
    _check_teachers(config, snapshot)
    if config.features == "waveform" and not snapshot.manifest["settings"]["keep_audio"]:
        raise MismatchError(
            f"--train.features waveform needs audio, but snapshot {snapshot.snapshot_id} was made without; preprocess"
            " with --keep-audio, or train with --train.features fbank"
        )
    verify_sizes(snapshot)


def _check_model(config: TrainConfig, model: ASTConfig, snapshot: Snapshot) -> None:
    if len(snapshot.labels) != model.num_classes:
        raise MismatchError(
            f"expected a model of {len(snapshot.labels)} classes, as snapshot {snapshot.snapshot_id} has, found one of"
            f" {model.num_classes}; set --model.num-classes"
        )
    if model.num_mel_bins != NUM_MEL_BINS:
        raise MismatchError(
            f"expected a model of {NUM_MEL_BINS} mel bins, as the fbanks have, found {model.num_mel_bins}; set"
            f" --model.num-mel-bins {NUM_MEL_BINS}"
        )
    config.regularise.num_kept_patches(model.grid)


def _check_clips(config: TrainConfig, snapshot: Snapshot) -> None:
    rows = snapshot.rows_of(config.train_splits)
    counts = snapshot.class_counts(config.train_splits)
    empty = [name for name, count in zip(snapshot.labels.names, counts, strict=True) if count == 0]
    if empty and not config.allow_empty_classes:
        raise NoClipsError(
            f"{len(empty)} of {len(counts)} classes have no training clip: {', '.join(empty[:10])}. Remove them from"
            " class_labels_indices.csv, fetch clips for them, or set --train.allow-empty-classes"
        )
    if config.loss == "ce" and (several := int((snapshot.targets(rows).sum(axis=1) != 1).sum())):
        raise MismatchError(
            f"--train.loss ce needs exactly one class per clip, but {several} training clips of snapshot"
            f" {snapshot.snapshot_id} have none or several; train with --train.loss bce"
        )
    num_draws = config.draws_per_epoch or len(rows)
    num_steps_of(num_draws, config.global_batch_size)
    if config.sampler == "uniform":
        check_num_draws(num_draws, len(rows), "clips")


def _check_teachers(config: TrainConfig, snapshot: Snapshot) -> None:
    if not config.teachers:
        return
    rows = snapshot.rows_of(config.train_splits)
    num_taught = Teachers(snapshot, rows, config.teachers).num_taught
    names = ", ".join(config.teachers)
    if not num_taught:
        raise MismatchError(
            f"expected scores of training clips ({', '.join(config.train_splits)}) from {names}, found none: import"
            " scores of these clips, or leave out --train.teachers"
        )
    log.info(
        "%s scored %d of %d training clips (%.1f %%); the other %d learn from their labels alone",
        *(names, num_taught, len(rows), 100 * num_taught / len(rows), len(rows) - num_taught),
    )


def warn_of_normalisation(job: Job) -> None:
    """Warn of a recipe that was made for data with another mean or spread."""
    norm, snapshot = job.normalisation, job.snapshot
    if abs(norm.mean - snapshot.mean) > FAR_FROM_DATA * snapshot.std or not 0.75 < norm.std / snapshot.std < 1.33:
        log.warning(
            "the recipe normalises with mean %.2f and std %.2f, but the data's are %.2f and %.2f; results will differ"
            " from the recipe's. Leave --train.mean and --train.std unset to use the data's",
            *(norm.mean, norm.std, snapshot.mean, snapshot.std),
        )


def changed_settings(settings: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """Return what differs from a run's record, or its checkpoint's: by name, `--FLAG: … then, … now`."""
    # A record from before there was a setting was made with what is its default now.
    defaults = {name: type(value)() for name, value in settings.items() if is_dataclass(value)}
    now, then = flatten(settings), flatten(defaults) | flatten({name: record[name] for name in settings})
    return {
        name: f"{flag_of(name)}: {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]
    }


def check_same_job(run: str, settings: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise MismatchError unless `settings` are those of the record as far as data, model and samples' order go."""
    fixed = ["snapshot", *(f"train.{name}" for name in PLAN_SETTINGS)]
    changed = changed_settings(settings, record).items()
    details = [text for name, text in changed if name in fixed or name.startswith("model.")]
    if details:
        raise MismatchError(
            f"run {run} was begun with other settings ({'; '.join(details)}); resume it with those, or start a new run"
        )


def check_average(config: TrainConfig, loop: LoopState) -> None:
    """Raise MismatchError if other epochs than the last ones would be averaged, since their number was changed."""
    expected = max(0, loop.epoch - config.first_averaged_epoch)
    if loop.num_averaged != expected:
        raise MismatchError(
            f"expected {expected} of {loop.epoch} epochs in the average, as --train.num-epochs {config.num_epochs} and"
            f" --train.average-last-epochs {config.average_last_epochs} say, found {loop.num_averaged}; resume the run"
            " with the --train.num-epochs that it was begun with"
        )
