"""Training presets. Each docstring gives the command, the cost and the expected result.

`audioset_balanced`, `audioset_full`, `esc50` and `speechcommands` follow the paper, its official code and its logs;
`audioset_eat` follows EAT's code, `audioset_balanced_modern` and `audioset_modern` AudioMosaic's. The other presets are
our own. The global batch size is the total over all ranks. On a GPU, all presets except `demo` compile the model's
blocks (`--train.compile auto`). Costs are computed from the share of the H200's peak that `make gpu` measured, as
docs/cluster.md explains.
"""

import dataclasses
from dataclasses import dataclass

from ast_model.config import (
    AUDIOSET_MEAN,
    AUDIOSET_STD,
    ASTConfig,
    AugmentConfig,
    RegulariseConfig,
    ScheduleConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Recipe:
    """Settings for a model and its training."""

    model: ASTConfig
    train: TrainConfig


NUM_CLIPS = {
    "audioset_balanced": 22_160,
    "audioset_full": 1_953_082,
    "audioset_full_scaled": 1_953_082,
    "audioset_eat": 1_953_082,
    "audioset_distilled": 1_953_082,
    "audioset_balanced_modern": 22_160,
    "audioset_modern": 1_953_082,
    "esc50": 5 * 1600,
    "speechcommands": 84_843,
    "fsd50k": 36_796,
    "vggsound": 183_730,
    "urbansound8k": 9 * 8732,
}
"""Training clips per preset, summed over folds."""


def scale_batch(train: TrainConfig, factor: int, power: float = 0.5) -> TrainConfig:
    """Scale settings to a global batch `factor` times larger, by the square-root rule for Adam.

    The learning rate grows by factor**power; a power of 1 is the linear rule of AudioMosaic. Step counts shrink by
    `factor`, so that the warm-up covers the same number of samples. Source: Malladi et al., On the SDEs and Scaling
    Rules for Adaptive Gradient Algorithms, 2022 (arXiv:2205.10287). Their rule also changes Adam's betas, which keep
    the paper's values here.
    """
    schedule = dataclasses.replace(
        train.schedule,
        num_warmup_steps=round(train.schedule.num_warmup_steps / factor),
        num_steps_per_stair=max(1, round(train.schedule.num_steps_per_stair / factor)),
    )
    return dataclasses.replace(
        train,
        global_batch_size=factor * train.global_batch_size,
        learning_rate=factor**power * train.learning_rate,
        schedule=schedule,
    )


def demo() -> Recipe:
    """A small AST on the miniature AudioSet, from random weights.

    Command: make demo
    Cost: 16,000 samples in 80 s of CPU time over two workers, so about 45 s of two idle cores.
    Result: eval mAP 0.91 to 0.95 for the last epoch and 0.91 to 0.94 for the average, over three seeds; chance is 0.12.
    """
    return Recipe(
        # Patches span 160 ms of all mel bins, so a clip has only 64. Cheap steps allow enough of them to train from
        # random weights.
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
            schedule=ScheduleConfig(num_warmup_steps=100, num_steps_per_stair=5, num_epochs_before_decay=10),
            augment=AugmentConfig(mixup_probability=0.3, max_freq_mask_bins=8, max_time_mask_frames=96),
            average_last_epochs=3,
            log_every_steps=20,
        ),
    )


def audioset_balanced() -> Recipe:
    r"""AST-base on the balanced training set, from ImageNet weights, as in the paper.

    Command: python jobs/audioset.py audioset_balanced --media MEDIA_FOLDER \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 554,000 samples of 727 GFLOP, by computation 18 minutes of an H200 at 38 % of the peak; fetching 42,000 clips.
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
            average_last_epochs=20,
            compile="auto",
        ),
    )


def audioset_full() -> Recipe:
    r"""AST-base on all training clips with class-balanced draws, from ImageNet weights, as in the paper.

    Command: python jobs/audioset.py audioset_full --media MEDIA_FOLDER \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 9.8 million samples of 727 GFLOP, by computation 5.2 hours of an H200 at 38 % of the peak; fetching
        2.06 M clips.
    Result: mAP 0.448 for the last epoch and 0.459 for the average of five in the paper; not run by us.
    """
    return Recipe(
        ASTConfig.base(),
        TrainConfig(mean=AUDIOSET_MEAN, std=AUDIOSET_STD, average_last_epochs=5, compile="auto"),
    )


def audioset_full_scaled() -> Recipe:
    r"""The paper's full recipe for many GPUs, with a 16 times larger global batch of 192.

    `scale_batch` adapts the learning rate and the warm-up. The paper's batch of 12 occupies at most 12 GPUs, and
    exchanging its gradients takes longer than computing them.

    Command: python jobs/audioset.py audioset_full_scaled --media MEDIA_FOLDER --workers 4:32 \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 9.8 million samples of 727 GFLOP, by computation 1.5 hours of 32 L40S at 33 % of the peak. Two thirds of the
    time go into the exchange of gradients.
    Result: never run. In a small experiment from random weights, a batch of 48 by the same rule reached a lower mAP
    after the same number of epochs (docs/recipes.md). DeiT's weights were not tried.
    """
    full = audioset_full()
    return Recipe(full.model, dataclasses.replace(scale_batch(full.train, 16), micro_batch_size=48))


def audioset_eat() -> Recipe:
    r"""EAT-base or SSLAM, fine-tuned from self-supervised weights on all training clips by EAT's recipe.

    SSLAM's recipe has 192 epochs and 40,000 steps of warm-up. Differences from EAT's code: mixup adds powers instead of
    mixing logarithms, with one λ per clip instead of one per batch; the learning rate ends at 0 instead of 1e-6; the
    patch embedding has the learning rate of the lowest layer instead of the full rate.

    Command: python jobs/audioset.py audioset_eat --media MEDIA_FOLDER --train.init EAT-base_epoch30_pretrain.pt
    Cost: 28.8 million samples of 271 GFLOP, by computation 5.8 hours of an H200 at 38 % of the peak.
    Result: mAP 0.486 to 0.489 for EAT and 0.502 for SSLAM as published; not run by us.
    """
    return Recipe(
        ASTConfig.eat(),
        TrainConfig(
            num_epochs=144,
            draws_per_epoch=200_000,
            sampler="without_replacement",
            global_batch_size=96,
            micro_batch_size=96,
            learning_rate=5e-5,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            decoupled_weight_decay=True,
            schedule=ScheduleConfig("cosine", num_warmup_steps=30_000, num_steps_per_stair=1),
            augment=AugmentConfig(
                mixup_probability=0.9,
                mixup_alpha=0.8,
                max_freq_mask_bins=25,
                max_time_mask_frames=204,
                max_roll_frames=512,
            ),
            regularise=RegulariseConfig(drop_path=0.1),
            layer_decay=0.65,
            mean=AUDIOSET_MEAN,
            std=AUDIOSET_STD,
            compile="auto",
        ),
    )


def audioset_distilled() -> Recipe:
    r"""The paper's full recipe with targets that are 90 % scores of PaSST's ensemble and 10 % labels.

    The authors of EfficientAT published the scores (4.4 GB). Import them once. Clips without scores keep their labels.

    Command: python jobs/preprocess.py run --root data/audioset --media MEDIA_FOLDER
    Then: python jobs/teachers.py import --root data/audioset --name passt --stated-map 0.495 \
        --scores passt_enemble_logits_mAP_495.npy --index fname_to_index.pkl
    Then: python jobs/train.py audioset_distilled --root data/audioset \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 9.8 million samples of 727 GFLOP, by computation 5.2 hours of an H200 at 38 % of the peak; reading the
        scores takes under 1 % of a step.
    Result: never run. With the same scores and share, EfficientAT reports mAP 0.471 for mn10_as and 0.484 for mn40_as.
    CED reports 0.500 for a ViT-base with its own teachers and no labels. Both trained for far more epochs. On the
    miniature AudioSet, a teacher for 73 % of the clips raised the mAP by 0.012 to 0.024 in each of three seeds.
    """
    full = audioset_full()
    return Recipe(full.model, dataclasses.replace(full.train, teachers=("passt",), teacher_share=0.9))


def audioset_balanced_modern() -> Recipe:
    r"""AudioMosaic from its self-supervised weights, on the balanced training set.

    The settings are AudioMosaic's. The learning rate follows the linear rule, 5e-4 for a batch of 256. Differences from
    its code: mixup adds powers instead of waveforms, the roll in time follows the masks, clips keep their level, and
    the new head starts with deviation 0.02 instead of 2.5e-5.

    Command: python jobs/audioset.py audioset_balanced_modern --media MEDIA_FOLDER \
        --train.init hanxunh/AudioMosaic-vit-b16-pretrained
    Cost: 1.3 million samples of 167 GFLOP, by computation 10 minutes of an H200 at 38 % of the peak; fetching 42,000
        clips.
    Result: mAP 0.425 as published, on audiomosaic-19012; not run by us.
    """
    return Recipe(ASTConfig.audiomosaic(), _audiomosaic(batch_size=64, learning_rate=5e-4 * 64 / 256))


def audioset_modern() -> Recipe:
    r"""AudioMosaic from its self-supervised weights, on all training clips.

    The settings are AudioMosaic's, with class-balanced draws. Its code differs as in audioset_balanced_modern.

    Command: python jobs/audioset.py audioset_modern --media MEDIA_FOLDER \
        --train.init hanxunh/AudioMosaic-vit-b16-pretrained
    Cost: 20 million samples of 167 GFLOP, by computation 2.5 hours of an H200 at 38 % of the peak; fetching 2.06 M
        clips.
    Result: mAP 0.502 as published, on audiomosaic-19012; not run by us.
    """
    train = _audiomosaic(batch_size=256, learning_rate=2e-4)
    return Recipe(
        ASTConfig.audiomosaic(),
        dataclasses.replace(
            train,
            train_splits=("balanced_train", "unbalanced_train"),
            num_epochs=100,
            draws_per_epoch=200_000,
            sampler="without_replacement",
            schedule=dataclasses.replace(train.schedule, num_warmup_steps=10 * (200_000 // 256)),
            layer_decay=0.75,
        ),
    )


def _audiomosaic(batch_size: int, learning_rate: float) -> TrainConfig:
    """Return AudioMosaic's settings for the balanced training set, of which it had 20,699 clips."""
    return TrainConfig(
        train_splits=("balanced_train",),
        num_epochs=60,
        sampler="uniform",
        global_batch_size=batch_size,
        micro_batch_size=64,
        learning_rate=learning_rate,
        betas=(0.9, 0.999),
        weight_decay=0.01,
        decoupled_weight_decay=True,
        schedule=ScheduleConfig(
            "cosine",
            num_warmup_steps=4 * (20_699 // batch_size),
            num_steps_per_stair=1,
            final_factor=1e-6 / learning_rate,
        ),
        augment=AugmentConfig(mixup_probability=0.8, max_roll_frames=512),
        # Masks of 0.2 of the 8 rows and of the 64 columns, rounded as in AudioMosaic: 306 of 512 patches remain.
        regularise=RegulariseConfig(patchout_freq=2, patchout_time=13, drop_path=0.1),
        layer_decay=0.65,
        mean=AUDIOSET_MEAN,
        std=AUDIOSET_STD,
        compile="auto",
    )


def esc50() -> Recipe:
    r"""AST-base on the five folds of ESC-50, from weights trained on AudioSet, as in the paper.

    Command: python jobs/esc50.py --data ESC-50-master --init audioset_10_10_0.4593.pth
    From ImageNet weights: --init facebook/deit-base-distilled-patch16-384 --learning-rate 1e-4
    Cost: 200,000 samples of 323 GFLOP, by computation 3 minutes of an H200 at 38 % of the peak for all folds.
    Result: accuracy 95.6 % (88.7 % from ImageNet weights) in the paper, which picks the best epoch on the test folds;
    not run by us. Our default is the last epoch, so test folds choose nothing.
    """
    return Recipe(
        ASTConfig.base(num_classes=50, num_frames=512),
        TrainConfig(
            num_epochs=25,
            sampler="uniform",
            global_batch_size=48,
            micro_batch_size=48,
            learning_rate=1e-5,
            schedule=ScheduleConfig(num_warmup_steps=0, num_epochs_before_decay=5, decay_factor=0.85),
            augment=AugmentConfig(mixup_probability=0.0, max_freq_mask_bins=24, max_time_mask_frames=96),
            loss="ce",
            mean=-6.6268077,
            std=5.358466,
            compile="auto",
        ),
    )


def speechcommands() -> Recipe:
    r"""AST-base on Speech Commands V2 with 35 classes, from ImageNet weights, as in the paper.

    mixup_probability is 0.6 in the official recipe but 0.5 in the published log. Try both with
    --augment.mixup-probability. max_decays keeps the learning rate constant from the 26th epoch, as in the log.

    Command: python jobs/speechcommands.py --data speech_commands_v0.02 \
        --init facebook/deit-base-distilled-patch16-384
    Cost: 2.5 million samples of 72 GFLOP, by computation 8 minutes of an H200 at 38 % of the peak. Reading the clips
    probably limits the speed.
    Result: accuracy 98.1 % on the testing list in the paper, for the best epoch on the validation list; not run by us.
    """
    return Recipe(
        ASTConfig.base(num_classes=35, num_frames=128),
        TrainConfig(
            train_splits=("train",),
            eval_split="valid",
            num_epochs=30,
            sampler="uniform",
            global_batch_size=128,
            micro_batch_size=128,
            learning_rate=2.5e-4,
            schedule=ScheduleConfig(num_warmup_steps=0, num_epochs_before_decay=5, decay_factor=0.85, max_decays=21),
            augment=AugmentConfig(
                mixup_probability=0.6,
                max_freq_mask_bins=48,
                max_time_mask_frames=48,
                noise=True,
                max_roll_frames=10,
            ),
            mean=-6.845978,
            std=5.5654526,
            compile="auto",
        ),
    )


def fsd50k() -> Recipe:
    r"""AST-base on FSD50K's training clips, from weights trained on AudioSet, with random crops of 10.24 s.

    Clips last 0.3 to 30 s. Training uses random segments of longer clips and pads shorter clips. Evaluations use the
    first 10.24 s. Batches of similar lengths would save padding, but AST's positions are trained for a single length.
    Learning rate, batch size and crop come from PaSST's recipe, mean and std from PSLA's.

    Command: python jobs/fsd50k.py --data FSD50K --init audioset_10_10_0.4593.pth
    Cost: 1.1 million samples of 727 GFLOP, by computation 36 minutes of an H200 at 38 % of the peak, without
        evaluations.
    Result: never run. Published mAP on the evaluation set: PaSST-S 0.655 (random crops of 10 s, from AudioSet weights),
        PSLA 0.567 (whole clips, from ImageNet weights).
    """
    return Recipe(
        ASTConfig.base(num_classes=200),
        TrainConfig(
            train_splits=("train",),
            eval_split="valid",
            num_epochs=30,
            sampler="uniform",
            schedule=ScheduleConfig(num_epochs_before_decay=10, decay_factor=0.85),
            augment=AugmentConfig(random_crop=True),
            mean=-4.6476,
            std=4.5699,
            compile="auto",
        ),
    )


def vggsound() -> Recipe:
    r"""AST-base on VGGSound's training clips with class-balanced draws, from ImageNet weights.

    Learning rate, batch size, epochs, mean and std come from CAV-MAE's recipe, without its label smoothing. VGGSound
    has no official validation split, so each epoch is evaluated on the test clips, and the last epoch counts.

    Command: python jobs/vggsound.py --media youtube --train.init facebook/deit-base-distilled-patch16-384
    Cost: 1.8 million samples of 727 GFLOP, by computation 59 minutes of an H200 at 38 % of the peak; fetching
        200,000 clips.
    Result: never run. Published: mAP 0.532 for the paper's ResNet-50, accuracy 59.5 % for CAV-MAE's audio branch,
        pretrained on AudioSet.
    """
    return Recipe(
        ASTConfig.base(num_classes=309),
        TrainConfig(
            train_splits=("train",),
            eval_split="test",
            num_epochs=10,
            global_batch_size=48,
            micro_batch_size=48,
            learning_rate=1e-4,
            augment=AugmentConfig(noise=True, max_roll_frames=10),
            loss="ce",
            mean=-5.081,
            std=4.4849,
            average_last_epochs=8,
            compile="auto",
        ),
    )


def urbansound8k() -> Recipe:
    r"""AST-base on the ten folds of UrbanSound8K, from weights trained on AudioSet.

    Uses the paper's ESC-50 recipe for clips of up to 4 s. Shorter clips are padded. Mean and standard deviation are
    measured on all folds.

    Command: python jobs/urbansound8k.py --data UrbanSound8K --init audioset_10_10_0.4593.pth
    Cost: 2.0 million samples of 246 GFLOP, by computation 21 minutes of an H200 at 38 % of the peak for all
        folds.
    Result: never run. Published accuracy: 89.8 % for a transformer from AudioSet weights (Nogueira et al., Sensors
        2022), 83.3 % for a linear layer on Dasheng's frozen embeddings (X-ARES).
    """
    return Recipe(
        ASTConfig.base(num_classes=10, num_frames=400),
        TrainConfig(
            num_epochs=25,
            sampler="uniform",
            global_batch_size=48,
            micro_batch_size=48,
            learning_rate=1e-5,
            schedule=ScheduleConfig(num_warmup_steps=0, num_epochs_before_decay=5, decay_factor=0.85),
            augment=AugmentConfig(mixup_probability=0.0, max_freq_mask_bins=24, max_time_mask_frames=80),
            loss="ce",
            compile="auto",
        ),
    )
