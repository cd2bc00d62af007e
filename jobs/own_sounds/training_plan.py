"""Choose the model's shape, the training settings, and head or all weights, according to the data."""

import dataclasses
import logging
import math
import statistics
from collections.abc import Sequence

from ast_model.config import ASTConfig, AugmentConfig, ScheduleConfig, TrainConfig
from ast_model.config.sizes import SIZES
from ast_model.flops import forward_flops
from ast_model.pretrained.load import load_pretrained
from jobs.own_sounds.settings import FinetuneConfig
from pipeline.errors import ConfigError
from pipeline.fbank_settings import SAMPLE_RATE_HZ, num_frames_of
from pipeline.recordings.own_sounds import SPLITS
from pipeline.recordings.tables import LabelledClip

log = logging.getLogger(__name__)

FRAME_GRID = 16
"""Size of a patch in frames. The number of frames is a multiple of it."""
MIN_FRAMES = 32
TARGET_SAMPLES = 4_000
"""Number of samples to train on for small data sets, within 5 to 40 epochs."""
SCRATCH_TARGET_SAMPLES, SCRATCH_BATCH_SIZE = 80_000, 32
"""Number of samples for random weights, within 20 to 100 epochs, and the batch size. 30 epochs of 2,700 spoken digits
reach an accuracy of 0.9 on two cores."""
WINDOW_QUANTILE = 0.98
MASKED_SHARE = 0.2

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
    return dataclasses.replace(shape, num_classes=num_classes, num_frames=max(_window(clips), shape.patch_time))


def _window(clips: Sequence[LabelledClip]) -> int:
    """Return a number of frames for 98 % of the clips. Padding all clips to the longest would slow training."""
    lengths_ms = sorted(_length_ms(clip) for clip in clips)
    window_ms = lengths_ms[math.ceil(WINDOW_QUANTILE * len(clips)) - 1]
    num_frames = num_frames_of(window_ms * SAMPLE_RATE_HZ // 1000)
    num_frames = max(MIN_FRAMES, math.ceil(num_frames / FRAME_GRID) * FRAME_GRID)
    longest = max(clips, key=_length_ms)
    if num_longer := sum(num_frames_of(each * SAMPLE_RATE_HZ // 1000) > num_frames for each in lengths_ms):
        log.info(
            "%d of %d clips are longer than the model's window of %.1f s, such as %s; the model sees a part of each",
            *(num_longer, len(clips), num_frames / 100, longest.path),
        )
    return num_frames


def _length_ms(clip: LabelledClip) -> int:
    return clip.end_ms - clip.start_ms


def plan_training(config: FinetuneConfig, clips: Sequence[LabelledClip]) -> TrainConfig:
    """Return training settings that suit the number of clips, the labels per clip and the initial weights."""
    num_clips = sum(clip.split == "train" for clip in clips)
    has_one_label = all(len(clip.labels) == 1 for clip in clips)
    batch_size = config.batch_size or (_batch_size(num_clips) if config.init else SCRATCH_BATCH_SIZE)
    batch_size = min(batch_size, num_clips)
    num_epochs = config.num_epochs or _num_epochs(config, num_clips)
    num_steps = num_epochs * (num_clips // batch_size)
    mixup = config.mixup_probability if config.mixup_probability is not None else (0.5 if config.init else 0.0)
    return TrainConfig(
        train_splits=("train",),
        eval_split=next(split for split in SPLITS[1:] if any(clip.split == split for clip in clips)),
        init=config.init,
        num_epochs=num_epochs,
        sampler="balanced",
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
            max_time_mask_frames=round(MASKED_SHARE * statistics.median(map(_length_ms, clips)) / 10),
            random_crop=True,
        ),
        loss="ce" if has_one_label else "bce",
        average_last_epochs=1 + num_epochs // 4,
        seed=config.seed,
        log_every_steps=max(1, min(20, num_steps // 20)),
    )


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
    num_clips = sum(clip.split == "train" for clip in clips)
    if has_gpu and num_clips >= FEW_CLIPS:
        return False
    reason = f"there are only {num_clips} training clips" if has_gpu else "there is no GPU"
    log.info("fitting only the head, because %s; --no-head-only trains all weights", reason)
    return True


def faster_alternatives(config: FinetuneConfig, model: ASTConfig) -> list[str]:
    """Return alternatives that take less time than training all weights with these settings."""
    smaller = list(SIZES)[: list(SIZES).index(config.model_size)] if not config.init else []
    shapes = {size: SIZES[size](num_classes=model.num_classes, num_frames=model.num_frames) for size in smaller}
    return [
        "--head-only, which embeds each clip once",
        *(
            f"--size {size} ({forward_flops(shape) / forward_flops(model):.1%} of the operations)"
            for size, shape in shapes.items()
        ),
    ]
