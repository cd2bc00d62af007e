"""Settings of a fine-tuning that follow from the data: the model's shape, the training, and head or all weights."""

import dataclasses
import logging
import math
from collections.abc import Sequence

from ast_model.config import ASTConfig, AugmentConfig, ScheduleConfig, TrainConfig
from ast_model.flops import forward_flops
from ast_model.pretrained.load import load_pretrained
from jobs.own_sounds.settings import FinetuneConfig
from pipeline.errors import ConfigError
from pipeline.fbank_settings import SAMPLE_RATE_HZ, num_frames_of
from pipeline.recordings.own_sounds import SPLITS
from pipeline.recordings.tables import LabelledClip

log = logging.getLogger(__name__)

SIZES = {
    "nano": ASTConfig.nano,
    "tiny": ASTConfig.tiny,
    "small": ASTConfig.small,
    "base": ASTConfig.base,
    "eat": ASTConfig.eat,
}
FRAME_GRID = 16
"""The number of frames is a multiple of this, the size of a patch."""
MIN_FRAMES = 32
TARGET_SAMPLES = 4_000
"""Samples that a training of few clips processes, up to MAX_EPOCHS."""
MIN_EPOCHS, MAX_EPOCHS = 5, 40

FEW_CLIPS = 2_000
"""Number of training clips below which only a head is fitted by default, even on a GPU."""


def plan_model(config: FinetuneConfig, clips: Sequence[LabelledClip], num_classes: int) -> ASTConfig:
    """Return the shape of the initial weights, or else of `--size`, with the length of the longest clip."""
    longest_ms = max(clip.end_ms - clip.start_ms for clip in clips)
    num_frames = num_frames_of(longest_ms * SAMPLE_RATE_HZ // 1000)
    num_frames = max(MIN_FRAMES, math.ceil(num_frames / FRAME_GRID) * FRAME_GRID)
    shape = SIZES[config.model_size]()
    if config.init:
        try:
            shape = load_pretrained(config.init).config
        except ConfigError:  # DeiT's weights have no AST config
            log.info("%s is not an AST, so --size %s defines the model's shape", config.init, config.model_size)
    return dataclasses.replace(shape, num_classes=num_classes, num_frames=max(num_frames, shape.patch_time))


def plan_training(config: FinetuneConfig, clips: Sequence[LabelledClip]) -> TrainConfig:
    """Return training settings for this number of clips, and for one or several labels per clip."""
    num_clips = sum(clip.split == "train" for clip in clips)
    has_one_label = all(len(clip.labels) == 1 for clip in clips)
    batch_size = config.batch_size or (8 if num_clips < 400 else 16 if num_clips < 4_000 else 48)
    batch_size = min(batch_size, num_clips)
    num_epochs = config.num_epochs or min(MAX_EPOCHS, max(MIN_EPOCHS, math.ceil(TARGET_SAMPLES / num_clips)))
    num_steps = num_epochs * (num_clips // batch_size)
    longest_s = max(clip.end_ms - clip.start_ms for clip in clips) / 1000
    return TrainConfig(
        train_splits=("train",),
        eval_split=next(split for split in SPLITS[1:] if any(clip.split == split for clip in clips)),
        init=config.init,
        num_epochs=num_epochs,
        sampler="balanced",
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        learning_rate=config.learning_rate or (5e-5 if config.init else 5e-4),
        schedule=ScheduleConfig(
            num_warmup_steps=num_steps // 10,
            num_steps_per_stair=max(1, num_steps // 100),
            num_epochs_before_decay=max(1, num_epochs // 2),
            num_epochs_per_decay=max(1, num_epochs // 10),
        ),
        augment=AugmentConfig(
            mixup_probability=config.mixup_probability,
            max_freq_mask_bins=24,
            max_time_mask_frames=round(20 * longest_s),  # 20 % of the longest clip at 100 frames per second
        ),
        loss="ce" if has_one_label else "bce",
        average_last_epochs=1 + num_epochs // 4,
        seed=config.seed,
        log_every_steps=max(1, min(20, num_steps // 20)),
    )


def choose_head_only(config: FinetuneConfig, has_gpu: bool, clips: Sequence[LabelledClip]) -> bool:
    """Return whether to fit only a head; log the reason if this is a default."""
    if config.head_only is not None:
        return config.head_only
    training_settings = (config.num_epochs, config.batch_size, config.learning_rate)
    if config.resume or any(setting is not None for setting in training_settings):
        return False
    num_clips = sum(clip.split == "train" for clip in clips)
    if has_gpu and num_clips >= FEW_CLIPS:
        return False
    reason = f"there are only {num_clips} training clips" if has_gpu else "there is no GPU"
    log.info("fitting only the head, because %s; --no-head-only trains all weights", reason)
    return True


def faster_alternatives(config: FinetuneConfig, model: ASTConfig) -> list[str]:
    """Return alternatives that take less time than a training of all weights with these settings."""
    smaller = list(SIZES)[: list(SIZES).index(config.model_size)] if not config.init else []
    shapes = {size: SIZES[size](num_classes=model.num_classes, num_frames=model.num_frames) for size in smaller}
    return [
        "--head-only, which embeds each clip once",
        *(
            f"--size {size} ({forward_flops(shape) / forward_flops(model):.1%} of the operations)"
            for size, shape in shapes.items()
        ),
    ]
