"""Check settings and data before a training run does anything costly."""

import logging
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from ast_model.checkpoints.checkpoint import LoopState
from ast_model.config import ASTConfig, TrainConfig, flag_of, flatten
from ast_model.data.sampling import check_num_draws, rank_slice
from ast_model.training.job import normalisation_of
from ast_model.training.plan import TrainingPlan
from pipeline.errors import MismatchError, NoClipsError
from pipeline.fbank_settings import FRAMES_PER_S, NUM_MEL_BINS
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint
from pipeline.snapshots.verify import verify_sizes

log = logging.getLogger(__name__)

PLAN_SETTINGS = (
    "train_splits eval_split eval_clips draws_per_epoch sampler weight_count_offset group_draws global_batch_size seed"
    " teachers teacher_share augment.mixup_probability augment.mixup_alpha average_last_epochs"
).split()
"""Settings that determine the order of samples. They are fixed for a run. Other settings may change when it resumes."""

FAR_FROM_DATA = 0.25
"""Difference in standard deviations above which a warning says that a recipe's normalisation does not fit the data."""
SHORT_SHARE = 0.5
"""Share of the model's window below which a warning calls typical clips short."""
CLEARLY_SHORTER = 0.9
"""Maximum length of a suggested window, as a share of the model's window."""


def check_ranks(config: TrainConfig, num_ranks: int) -> None:
    """Raise ConfigError if there are more ranks than samples in a step."""
    rank_slice(0, config.global_batch_size, 0, num_ranks)


def check_training(plan: TrainingPlan, model: ASTConfig) -> None:
    """Raise if training can't start with this data and these settings. Warn of a poor match.

    The driver calls this once for all ranks.
    """
    # Cheap checks first, requests to the store last.
    snapshot, config = plan.snapshot, plan.config
    check_fingerprint(snapshot)
    _check_model(plan, model)
    _check_clips(plan)
    if config.features == "waveform" and not snapshot.manifest["settings"]["keep_audio"]:
        raise MismatchError(
            f"--train.features waveform needs audio, but snapshot {snapshot.snapshot_id} was made without it;"
            " preprocess with --keep-audio, or train with --train.features fbank"
        )
    verify_sizes(snapshot)
    _warn_of_normalisation(plan)
    _warn_of_padding(snapshot, model)


def _check_model(plan: TrainingPlan, model: ASTConfig) -> None:
    snapshot = plan.snapshot
    if len(snapshot.labels) != model.num_classes:
        raise MismatchError(
            f"expected a model with {len(snapshot.labels)} classes for snapshot {snapshot.snapshot_id}, found"
            f" {model.num_classes} classes; set --model.num-classes"
        )
    if model.num_mel_bins != NUM_MEL_BINS:
        raise MismatchError(
            f"expected a model with {NUM_MEL_BINS} mel bins, like the fbanks, found {model.num_mel_bins}; set"
            f" --model.num-mel-bins {NUM_MEL_BINS}"
        )
    plan.config.regularise.num_kept_patches(model.grid)


def _check_clips(plan: TrainingPlan) -> None:
    """Check that clips exist, cover all classes and fill a step."""
    config, snapshot = plan.config, plan.snapshot
    num_clips, num_eval = len(plan.train_rows), len(plan.eval_rows)
    counts = np.asarray(plan.targets.sum(axis=0)).ravel()
    empty = [name for name, count in zip(snapshot.labels.names, counts, strict=True) if count == 0]
    if empty and not config.allow_empty_classes:
        raise NoClipsError(
            f"{len(empty)} of {len(counts)} classes have no training clip: {', '.join(empty[:10])}. Remove them from"
            " class_labels_indices.csv, fetch clips for them, or set --train.allow-empty-classes"
        )
    if config.loss == "ce" and (several := int((plan.targets.sum(axis=1) != 1).sum())):
        raise MismatchError(
            f"--train.loss ce needs exactly one class per clip, but {several} training clips of snapshot"
            f" {snapshot.snapshot_id} have none or several; train with --train.loss bce"
        )
    log.info("%d training clips, %d evaluation clips, %d steps per epoch", num_clips, num_eval, plan.num_steps)
    if config.eval_clips:
        log.info("evaluation clips of %s: %s", config.eval_clips, plan.eval_coverage)
    if config.sampler == "uniform":
        check_num_draws(plan.num_draws, num_clips, "clips")


def _warn_of_normalisation(plan: TrainingPlan) -> None:
    """Warn if the recipe normalises for data with a different mean or spread."""
    snapshot, norm = plan.snapshot, normalisation_of(plan.config, plan.snapshot)
    if abs(norm.mean - snapshot.mean) > FAR_FROM_DATA * snapshot.std or not 0.75 < norm.std / snapshot.std < 1.33:
        log.warning(
            "the recipe normalises with mean %.2f and std %.2f, but the data's are %.2f and %.2f; results will differ"
            " from the recipe's. Leave --train.mean and --train.std unset to use the data's",
            *(norm.mean, norm.std, snapshot.mean, snapshot.std),
        )


def _warn_of_padding(snapshot: Snapshot, model: ASTConfig) -> None:
    """Warn if most clips are far shorter than the model's window, since padding costs as much time as sound.

    The advice is a window that cuts at most a tenth of the clips, if it is clearly shorter.
    """
    median_s, long_s = np.quantile(snapshot.index["num_frames"].to_numpy(), (0.5, 0.9)) / FRAMES_PER_S
    window_s = model.num_frames / FRAMES_PER_S
    if median_s >= SHORT_SHARE * window_s:
        return
    advice = ""
    if long_s < CLEARLY_SHORTER * window_s:
        advice = (
            f". A shorter window trains faster and cuts a tenth of the clips: --clip-s {max(0.1, long_s):.1f} for your"
            " own sounds, else --model.num-frames"
        )
    message = "half of the clips last at most %.1f s, but the model's window is %.1f s: the rest is padding%s"
    log.warning(message, median_s, window_s, advice)


def changed_settings(settings: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, str]:
    """Compare settings with a run's record or checkpoint. Returns differences by name: `--FLAG: … then, … now`."""
    # Assume today's defaults for settings that did not exist when the record was written.
    defaults = {name: type(value)() for name, value in settings.items() if is_dataclass(value)}
    now, then = flatten(settings), flatten(defaults) | flatten({name: record[name] for name in settings})
    return {
        name: f"{flag_of(name)}: {then.get(name)} then, {now[name]} now" for name in now if then.get(name) != now[name]
    }


def check_same_job(run: str, settings: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Raise MismatchError if the data, the model or the order of samples differs from the record."""
    fixed = ["snapshot", *(f"train.{name}" for name in PLAN_SETTINGS)]
    changed = changed_settings(settings, record).items()
    details = [text for name, text in changed if name in fixed or name.startswith("model.")]
    if details:
        raise MismatchError(
            f"run {run} was started with other settings ({'; '.join(details)}); resume it with the old settings, or"
            " start a new run"
        )


def check_average(config: TrainConfig, loop: LoopState) -> None:
    """Raise MismatchError if the number of epochs has changed and the average would miss some of the last ones."""
    expected = max(0, loop.epoch - config.first_averaged_epoch)
    if loop.num_averaged != expected:
        raise MismatchError(
            f"--train.num-epochs {config.num_epochs} and --train.average-last-epochs {config.average_last_epochs} need"
            f" an average of {expected} of the first {loop.epoch} epochs, but the checkpoint has {loop.num_averaged};"
            " resume the run with its original --train.num-epochs"
        )
