"""Whether a training can work at all: asked before anything costly, by the driver and by each rank."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ast_model.config import ASTConfig, TrainConfig
from ast_model.data.sampling import check_num_draws, num_steps_of
from ast_model.training.job import Job
from ast_model.training.regularise import num_kept_patches
from pipeline.errors import ConfigError, MismatchError, NoClipsError
from pipeline.fbank import NUM_MEL_BINS
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint
from pipeline.snapshots.verify import verify_sizes

log = logging.getLogger(__name__)

FAR_FROM_DATA = 0.25
"""In standard deviations: a recipe whose normalisation is further from the data's is warned about."""


def check_ranks(config: TrainConfig, num_ranks: int) -> None:
    """Raise ConfigError if there are more ranks than samples in a step."""
    if num_ranks > config.global_batch_size:
        raise ConfigError(
            f"expected a global_batch_size of at least one sample per rank, found {config.global_batch_size} for"
            f" {num_ranks} ranks; raise it or train on fewer"
        )


def check_training(config: TrainConfig, model: ASTConfig, snapshot: Snapshot) -> None:
    """Raise, before anything costly, if the data can't be learnt from as the config says."""
    check_fingerprint(snapshot)
    _check_model(config, model, snapshot)
    snapshot.rows_of((config.eval_split,))
    _check_clips(config, snapshot)
    if config.features == "waveform" and not snapshot.manifest["settings"]["keep_audio"]:
        raise MismatchError(
            f"features=waveform needs audio, but snapshot {snapshot.snapshot_id} was made without; preprocess with"
            " keep_audio, or train with features=fbank"
        )
    verify_sizes(snapshot)


def _check_model(config: TrainConfig, model: ASTConfig, snapshot: Snapshot) -> None:
    if len(snapshot.labels) != model.num_classes:
        raise MismatchError(
            f"expected a model of {len(snapshot.labels)} classes, as snapshot {snapshot.snapshot_id} has, found one of"
            f" {model.num_classes}; set model.num_classes"
        )
    if model.num_mel_bins != NUM_MEL_BINS:
        raise MismatchError(
            f"expected a model of {NUM_MEL_BINS} mel bins, as the fbanks have, found {model.num_mel_bins}; set"
            f" model.num_mel_bins={NUM_MEL_BINS}"
        )
    num_kept_patches(model.grid, config.regularise)


def _check_clips(config: TrainConfig, snapshot: Snapshot) -> None:
    rows = snapshot.rows_of(config.train_splits)
    counts = snapshot.class_counts(config.train_splits)
    empty = [name for name, count in zip(snapshot.labels.names, counts, strict=True) if count == 0]
    if empty and not config.allow_empty_classes:
        raise NoClipsError(
            f"{len(empty)} of {len(counts)} classes have no training clip: {', '.join(empty[:10])}. Remove them from"
            " class_labels_indices.csv, fetch clips for them, or set train.allow_empty_classes"
        )
    if config.loss == "ce" and (several := _num_of_several_classes(snapshot, rows)):
        raise MismatchError(
            f"loss=ce needs exactly one class per clip, but {several} training clips of snapshot"
            f" {snapshot.snapshot_id} have another number; train with loss=bce"
        )
    num_draws = config.draws_per_epoch or len(rows)
    num_steps_of(num_draws, config.global_batch_size)
    if config.sampler == "uniform":
        check_num_draws(num_draws, len(rows), "clips")


def _num_of_several_classes(snapshot: Snapshot, rows: np.ndarray) -> int:
    """Count the clips that don't have exactly one class."""
    return int((snapshot.targets(rows).sum(axis=1) != 1).sum())


def warn_of_normalisation(job: Job) -> None:
    """Warn of a recipe that was made for data with another mean or spread."""
    norm, snapshot = job.normalisation, job.snapshot
    if abs(norm.mean - snapshot.mean) > FAR_FROM_DATA * snapshot.std or not 0.75 < norm.std / snapshot.std < 1.33:
        log.warning(
            "the recipe normalises with mean %.2f and std %.2f, but the data's are %.2f and %.2f; results will differ"
            " from the recipe's. Leave train.mean and train.std unset to use the data's",
            *(norm.mean, norm.std, snapshot.mean, snapshot.std),
        )


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
