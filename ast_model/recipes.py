"""Presets: what to train, with the command, the expected cost and the expected result of each.

They are the paper's settings, as far as the official code and logs tell them, and EAT's in `audioset_eat`; `demo`,
`audioset_full_scaled`, `audioset_distilled`, `fsd50k`, `vggsound` and `urbansound8k` are ours. A global batch has as
many samples as there, on any number of ranks. On a GPU all but `demo` compile the model's blocks (`--train.compile
auto`). Costs are computed, not measured: operations at the
share of the GPU's peak that `make gpu` measured on an H200. docs/cluster.md has more of them.
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
    """The model's shape and how it is trained."""

    model: ASTConfig
    train: TrainConfig


NUM_CLIPS = {
    "audioset_balanced": 22_160,
    "audioset_full": 1_953_082,
    "audioset_full_scaled": 1_953_082,
    "audioset_eat": 1_953_082,
    "audioset_distilled": 1_953_082,
    "esc50": 5 * 1600,
    "speechcommands": 84_843,
    "fsd50k": 36_796,
    "vggsound": 183_730,
    "urbansound8k": 9 * 8732,
}
"""Training clips of a preset, of all folds together."""


def scale_batch(train: TrainConfig, factor: int) -> TrainConfig:
    """Return settings for a global batch that is `factor` times larger, by the square-root rule for Adam.

    The learning rate grows by √factor, and all that is counted in steps shrinks by factor, so that the warm-up takes as
    many samples. Source: Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022
    (arXiv:2205.10287). Their rule also changes Adam's betas, which stay the paper's here.
    """
    schedule = dataclasses.replace(
        train.schedule,
        num_warmup_steps=round(train.schedule.num_warmup_steps / factor),
        num_steps_per_stair=max(1, round(train.schedule.num_steps_per_stair / factor)),
    )
    return dataclasses.replace(
        train,
        global_batch_size=factor * train.global_batch_size,
        learning_rate=factor**0.5 * train.learning_rate,
        schedule=schedule,
    )


def demo() -> Recipe:
    """Small AST on the miniature, from scratch.

    Command: make demo
    Cost: 16,000 samples in 80 s of CPU time over two workers, so about 45 s of two idle cores.
    Result: eval mAP 0.91 to 0.95 for the last epoch and 0.91 to 0.94 for the average, over three seeds; chance is 0.12.
    """
    return Recipe(
        # A patch is 160 ms of all mel bins: 64 per clip, so that enough steps to learn from scratch are cheap.
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
    r"""AST-base on the balanced training set, from ImageNet weights, as the paper's.

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
    r"""AST-base on all training clips with class-balanced draws, from ImageNet weights, as the paper's.

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
    r"""The paper's full recipe for many GPUs: a global batch of 192, 16 times the paper's, by the square-root rule.

    Learning rate and warm-up follow `scale_batch`. With the paper's batch of 12 more than 12 GPUs have nothing to do,
    and gradients are exchanged 16 times as often, which then takes longer than computing them.

    Command: python jobs/audioset.py audioset_full_scaled --media MEDIA_FOLDER --workers 4:32 \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 9.8 million samples of 727 GFLOP, by computation 1.5 hours of 32 L40S at 33 % of the peak, two thirds
        of it for gradients.
    Result: none yet: it was never run. In small a batch of 48 by the same rule, from random weights, reached a lower
    mAP in as many epochs (docs/recipes.md); from DeiT's weights that was not tried.
    """
    full = audioset_full()
    return Recipe(full.model, dataclasses.replace(scale_batch(full.train, 16), micro_batch_size=48))


def audioset_eat() -> Recipe:
    r"""EAT-base, or SSLAM, from its self-supervised weights, fine-tuned on all training clips as EAT's recipe does.

    SSLAM's is the same with 192 epochs and 40,000 steps of warm-up. What differs from EAT's code: mixup adds powers
    where it mixes logarithms, a pair for each clip where a batch has one λ; the learning rate ends at 0, not at 1e-6;
    what makes the tokens learns at the lowest layer's rate, where there it has the full one.

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
    r"""The paper's full recipe with a teacher: 0.9 of the targets are the mean scores of PaSST's ensemble.

    The scores are EfficientAT's, 4.4 GB, imported once; clips that have none learn from their labels alone.

    Command: python jobs/preprocess.py run --root data/audioset --media MEDIA_FOLDER
    Then: python jobs/teachers.py import --root data/audioset --name passt --stated-map 0.495 \
        --scores passt_enemble_logits_mAP_495.npy --index fname_to_index.pkl
    Then: python jobs/train.py audioset_distilled --root data/audioset \
        --train.init facebook/deit-base-distilled-patch16-384
    Cost: 9.8 million samples of 727 GFLOP, by computation 5.2 hours of an H200 at 38 % of the peak; reading the
        scores is under a hundredth of a step.
    Result: none yet: it was never run. Published with the same scores and share: mAP 0.471 for EfficientAT's mn10_as
        and 0.484 for mn40_as; with CED's own teachers and no labels 0.500 for a ViT-base; all after far more epochs.
        On the miniature a teacher of 73 % of the clips raised the mAP of each of three seeds by 0.012 to 0.024.
    """
    full = audioset_full()
    return Recipe(full.model, dataclasses.replace(full.train, teachers=("passt",), teacher_share=0.9))


def esc50() -> Recipe:
    r"""AST-base on ESC-50, from weights trained on AudioSet, five folds, as the paper's.

    Command: python jobs/esc50.py --data ESC-50-master --init audioset_10_10_0.4593.pth
    Without AudioSet's weights: --init facebook/deit-base-distilled-patch16-384 --learning-rate 1e-4
    Cost: 200,000 samples of 323 GFLOP, by computation 3 minutes of an H200 at 38 % of the peak for all folds.
    Result: accuracy 95.6 % (88.7 % from ImageNet weights alone) in the paper, at the epoch that is best on the
        test folds; not run by us. The last epoch's, our default, is not chosen on them.
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
    r"""AST-base on Speech Commands V2 with 35 classes, from ImageNet weights, as the paper's.

    mixup_probability is 0.6 in the official recipe, but 0.5 in the log that it came with: try both with
    --augment.mixup-probability. The log's learning rate stays the same from the 26th epoch on, hence max_decays.

    Command: python jobs/speechcommands.py --data speech_commands_v0.02 \
        --init facebook/deit-base-distilled-patch16-384
    Cost: 2.5 million samples of 72 GFLOP, by computation 8 minutes of an H200 at 38 % of the peak, more likely
        bound by reading.
    Result: accuracy 98.1 % in the paper, on the testing list by the epoch best on the validation list; not run by us.
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
    r"""AST-base on FSD50K's train clips, from weights trained on AudioSet, with random crops of 10.24 s.

    Clips last 0.3 to 30 s: of longer ones each draw takes another stretch, shorter ones are padded, and evaluations
    take the first 10.24 s. Batches by length would save the padding, but an AST's positions are made for one length: a
    shorter input takes the middle of them, which is another task than the one that weights were trained for. Learning
    rate, batch and crop are those of PaSST's recipe, mean and std those of PSLA's.

    Command: python jobs/fsd50k.py --data FSD50K --init audioset_10_10_0.4593.pth
    Cost: 1.1 million samples of 727 GFLOP, by computation 36 minutes of an H200 at 38 % of the peak; evaluations
        are left out.
    Result: none yet: it was never run. Published mAP on the evaluation set: PaSST-S 0.655 (random crops of 10 s, from
        AudioSet's weights), PSLA 0.567 (whole clips, from ImageNet's).
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

    Learning rate, batch, epochs, mean and std are those of CAV-MAE's recipe, without its label smoothing. The test
    clips are measured on after each epoch, as there: there is no official validation split. The last epoch counts.

    Command: python jobs/vggsound.py --media youtube --train.init facebook/deit-base-distilled-patch16-384
    Cost: 1.8 million samples of 727 GFLOP, by computation 59 minutes of an H200 at 38 % of the peak; fetching
        200,000 clips.
    Result: none yet: it was never run. Published: mAP 0.532 for the paper's ResNet-50; accuracy 59.5 % for CAV-MAE's
        audio branch alone, pre-trained on AudioSet.
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
    r"""AST-base on UrbanSound8K, from weights trained on AudioSet, ten folds.

    Settings are those of the paper's ESC-50 recipe, for clips of up to 4 s; shorter ones are padded. Mean and standard
    deviation are measured on all folds.

    Command: python jobs/urbansound8k.py --data UrbanSound8K --init audioset_10_10_0.4593.pth
    Cost: 2.0 million samples of 246 GFLOP, by computation 21 minutes of an H200 at 38 % of the peak for all
        folds.
    Result: none yet: it was never run. Published accuracy: 89.8 % for a transformer from AudioSet's weights (Nogueira
        et al., Sensors 2022), 83.3 % for a linear layer on Dasheng's frozen embeddings (X-ARES).
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
