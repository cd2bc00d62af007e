"""Choose the model's shape, the training settings, and head or all weights, according to the data."""

import dataclasses
import logging
import math
import statistics
from collections import Counter
from collections.abc import Sequence

from ast_model.config import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    ASTConfig,
    AugmentConfig,
    ScheduleConfig,
    TrainConfig,
)
from ast_model.config.sizes import SIZES
from ast_model.data.augment import Normalisation
from ast_model.flops import forward_flops
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.metadata import read_stored_metadata
from ast_model.pretrained.weight_files import WeightFile, read_weights
from jobs.own_sounds.lengths import length_ms, plan_window
from jobs.own_sounds.settings import FinetuneConfig
from pipeline.errors import ConfigError
from pipeline.recordings.sound_tables import FOLD, SPLITS
from pipeline.recordings.tables import LabelledClip

log = logging.getLogger(__name__)

TARGET_SAMPLES = 4_000
"""Number of samples to train on for small data sets, within 5 to 40 epochs."""
SCRATCH_TARGET_SAMPLES, SCRATCH_BATCH_SIZE = 80_000, 32
"""Number of samples for random weights, within 20 to 100 epochs, and the batch size. 30 epochs of 2,700 spoken digits
reach an accuracy of 0.9 on two cores."""
MASKED_SHARE = 0.2
HEAD_PRESET = "finetune_head"
"""Preset and name prefix of runs that fit only a head."""

FEW_CLIPS = 2_000
"""Number of training clips below which only a head is fitted by default, even on a GPU."""


def plan_model(config: FinetuneConfig, clips: Sequence[LabelledClip], num_classes: int) -> ASTConfig:
    """Return the shape of the initial weights or of `--size`, with a window that fits nearly all clips."""
    shape = SIZES[config.model_size]()
    if config.init:
        try:
            shape = load_pretrained(config.init).config
        except ConfigError:  # DeiT's weights have no AST config
            log.info("%s is not an AST, so --size %s defines the model's shape", config.init, config.model_size)
    return dataclasses.replace(shape, num_classes=num_classes, num_frames=max(plan_window(clips), shape.patch_time))


def list_folds(clips: Sequence[LabelledClip]) -> list[str]:
    """Return the splits that are folds, in numerical order."""
    folds = {clip.split for clip in clips if clip.split.startswith(FOLD)}
    return sorted(folds, key=lambda name: (len(name), name))


def count_training_clips(clips: Sequence[LabelledClip]) -> int:
    """Return the number of training clips. With folds, this is the smallest number over all folds."""
    counts = Counter(clip.split for clip in clips)
    return len(clips) - max(counts.values()) if list_folds(clips) else counts["train"]


def plan_fold(train: TrainConfig, folds: Sequence[str], fold: str) -> TrainConfig:
    """Return the settings for one fold: test on it, train on all other folds."""
    others = tuple(other for other in folds if other != fold)
    return dataclasses.replace(train, train_splits=others, eval_split=fold)


def plan_training(config: FinetuneConfig, clips: Sequence[LabelledClip]) -> TrainConfig:
    """Return training settings that suit the number of clips, the labels per clip and the initial weights."""
    num_clips, folds = count_training_clips(clips), list_folds(clips)
    num_labels = {len(clip.labels) for clip in clips}
    batch_size = config.batch_size or (_batch_size(num_clips) if config.init else SCRATCH_BATCH_SIZE)
    batch_size = min(batch_size, num_clips)
    num_epochs = config.num_epochs or _num_epochs(config, num_clips)
    num_steps = num_epochs * (num_clips // batch_size)
    mixup = config.mixup_probability if config.mixup_probability is not None else (0.5 if config.init else 0.0)
    train = TrainConfig(
        train_splits=("train",),
        eval_split=next((split for split in SPLITS[1:] if any(clip.split == split for clip in clips)), ""),
        init=config.init,
        num_epochs=num_epochs,
        # Negative clips have no class, so they can't be balanced.
        sampler="uniform" if 0 in num_labels else "balanced",
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        learning_rate=config.learning_rate or (5e-5 if config.init else 7e-4),
        schedule=ScheduleConfig(
            shape="steps" if config.init else "cosine",
            num_warmup_steps=num_steps // 10,
            num_steps_per_stair=max(1, num_steps // 100),
            num_epochs_before_decay=max(1, num_epochs // 2),
            num_epochs_per_decay=max(1, num_epochs // 10),
        ),
        augment=AugmentConfig(
            mixup_probability=mixup,
            max_freq_mask_bins=24 if config.init else 8,
            # Mask up to 20 % of the median clip. Masks as long as short clips would hide them.
            max_time_mask_frames=round(MASKED_SHARE * statistics.median(map(length_ms, clips)) / 10),
            random_crop=True,
        ),
        loss="ce" if num_labels == {1} else "bce",
        average_last_epochs=1 + num_epochs // 4,
        seed=config.seed,
        log_every_steps=max(1, min(20, num_steps // 20)),
    )
    return plan_fold(train, folds, folds[0]) if folds else train


def normalise_like_head(train: TrainConfig) -> TrainConfig:
    """Adopt the normalisation of a head given by --init, so that training starts with its scores."""
    file = read_weights(train.init) if train.init else None
    metadata = read_stored_metadata(file) if file and is_fitted_head(file) else None
    return dataclasses.replace(train, mean=metadata.mean, std=metadata.std) if metadata else train


def is_fitted_head(file: WeightFile) -> bool:
    """Return True if the weights come from a run that fitted only a head."""
    return str(file.description.get("run", "")).startswith(HEAD_PRESET)


def embedding_normalisation(init: str) -> Normalisation:
    """Return the normalisation for frozen embeddings, from the initial weights or else from AudioSet.

    It does not depend on the data, so all splits and selections share the stored embeddings.
    """
    metadata = read_stored_metadata(read_weights(init)) if init else None
    return Normalisation(metadata.mean, metadata.std) if metadata else Normalisation(AUDIOSET_MEAN, AUDIOSET_STD)


def _batch_size(num_clips: int) -> int:
    return 8 if num_clips < 400 else 16 if num_clips < 4_000 else 48


def _num_epochs(config: FinetuneConfig, num_clips: int) -> int:
    target, fewest, most = (TARGET_SAMPLES, 5, 40) if config.init else (SCRATCH_TARGET_SAMPLES, 20, 100)
    return min(most, max(fewest, math.ceil(target / num_clips)))


def choose_head_only(config: FinetuneConfig, has_gpu: bool, clips: Sequence[LabelledClip]) -> bool:
    """Return True to fit only a head. Logs the reason for a default."""
    if config.head_only is not None:
        return config.head_only
    training_settings = (config.num_epochs, config.batch_size, config.learning_rate)
    if config.resume or any(setting is not None for setting in training_settings):
        return False
    num_clips = count_training_clips(clips)
    if has_gpu and num_clips >= FEW_CLIPS:
        return False
    reason = f"there are only {num_clips} training clips" if has_gpu else "there is no GPU"
    log.info("fitting only the head, because %s; --no-head-only trains all weights", reason)
    return True


def faster_alternatives(config: FinetuneConfig, model: ASTConfig, with_head: bool = True) -> list[str]:
    """Return alternatives that take less time than these settings.

    with_head: include fitting only a head, the fastest alternative to a training of all weights.
    """
    smaller = list(SIZES)[: list(SIZES).index(config.model_size)] if not config.init else []
    shapes = {size: SIZES[size](num_classes=model.num_classes, num_frames=model.num_frames) for size in smaller}
    return [
        *(["--head-only, which embeds each clip once"] if with_head else []),
        *(
            f"--size {size} ({forward_flops(shape) / forward_flops(model):.1%} of the operations)"
            for size, shape in shapes.items()
        ),
        *([] if config.ray.use_gpu or with_head else ["a GPU (--use-gpu)"]),
    ]
