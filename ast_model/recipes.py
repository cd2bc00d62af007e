"""Presets: what to train, with the command, the expected cost and the expected result of each."""

from dataclasses import dataclass

from ast_model.config import AugmentConfig, TrainConfig
from ast_model.model import ASTConfig
from ast_model.schedule import ScheduleConfig

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974


@dataclass(frozen=True)
class Recipe:
    """The model's shape and how it is trained."""

    model: ASTConfig
    train: TrainConfig


def demo() -> Recipe:
    """Small AST on the miniature, from scratch.

    Command: make demo
    Cost: about two minutes of two CPU cores.
    Result: eval mAP above 0.50; chance is about 0.12.
    """
    return Recipe(
        # A patch is 160 ms of all mel bins: a quarter of the tokens of square ones, and so four times the steps.
        ASTConfig(
            num_classes=15,
            patch_freq=128,
            freq_stride=128,
            patch_time=16,
            time_stride=16,
            width=96,
            depth=3,
            num_heads=4,
            mlp_ratio=2,
        ),
        TrainConfig(
            num_epochs=10,
            draws_per_epoch=1600,
            global_batch_size=16,
            micro_batch_size=8,
            learning_rate=1e-3,
            schedule=ScheduleConfig(num_warmup_steps=100, num_steps_per_stair=5, num_epochs_before_decay=7),
            augment=AugmentConfig(mixup_probability=0.3, max_freq_mask_bins=8, max_time_mask_frames=96),
            average_from_epoch=8,
            log_every_steps=20,
        ),
    )


def audioset_balanced() -> Recipe:
    r"""AST-base on the balanced training set, from ImageNet weights, as the paper's.

    Command: python jobs/audioset.py audioset_balanced --media MEDIA_FOLDER \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 554,000 samples of 783 GFLOP, by computation 20 minutes of an H200 at 45 % of its peak; and 42,000 clips.
    Result: mAP 0.347 in the paper (0.350 with enhanced labels); not run by us.
    """
    return Recipe(
        ASTConfig.base(),
        TrainConfig(
            train_splits=("balanced_train",),
            num_epochs=25,
            sampler="uniform",
            learning_rate=5e-5,
            schedule=ScheduleConfig(num_epochs_before_decay=10, num_epochs_per_decay=5),
            mean=AUDIOSET_MEAN,
            std=AUDIOSET_STD,
            average_from_epoch=6,
        ),
    )


def audioset_full() -> Recipe:
    r"""AST-base on all training clips with class-balanced draws, from ImageNet weights, as the paper's.

    Command: python jobs/audioset.py audioset_full --media MEDIA_FOLDER \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 10 million samples of 783 GFLOP, by computation 5 hours of an H200 at 45 % of its peak; fetching 2.06 M clips.
    Result: mAP 0.448 for the last epoch and 0.459 for the average of five in the paper; not run by us.
    """
    return Recipe(
        ASTConfig.base(),
        TrainConfig(mean=AUDIOSET_MEAN, std=AUDIOSET_STD, average_from_epoch=1),
    )
