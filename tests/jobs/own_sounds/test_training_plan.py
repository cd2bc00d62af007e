import logging
from pathlib import Path

import pytest

from ast_model.config import ASTConfig
from ast_model.export import export_safetensors
from ast_model.model import AST
from jobs.finetune import COMMAND_LINE
from jobs.own_sounds.settings import FinetuneConfig
from jobs.own_sounds.training_plan import (
    choose_head_only,
    count_training_clips,
    list_folds,
    plan_fold,
    plan_model,
    plan_training,
)
from pipeline.recordings.tables import LabelledClip


def make_clips(num_clips: int, labels: tuple[str, ...] = ("dog",), clip_ms: int = 10_000) -> list[LabelledClip]:
    """Return clips, one in five of them held out."""
    splits = ["eval" if index % 5 == 0 else "train" for index in range(num_clips)]
    return [LabelledClip(Path(str(index)), labels, split, 0, clip_ms) for index, split in enumerate(splits)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_clips", "num_epochs", "batch_size"), [(50, 40, 8), (5_000, 5, 48), (50_000, 5, 48), (4, 40, 3)]
)
def test_defaults_depend_on_the_number_of_clips(num_clips: int, num_epochs: int, batch_size: int) -> None:
    train = plan_training(FinetuneConfig(init="ast.pth"), make_clips(num_clips))
    assert (train.num_epochs, train.global_batch_size) == (num_epochs, batch_size)
    assert (train.loss, train.eval_split, train.learning_rate) == ("ce", "eval", 5e-5)
    chosen = FinetuneConfig(num_epochs=3, batch_size=2, learning_rate=1e-3)
    train = plan_training(chosen, make_clips(num_clips, ("dog", "loud")))
    assert (train.num_epochs, train.global_batch_size, train.learning_rate) == (3, 2, 1e-3)
    assert train.loss == "bce"


def test_random_weights_train_longer_and_without_mixup() -> None:
    train = plan_training(FinetuneConfig(), make_clips(3_375))
    assert (train.num_epochs, train.global_batch_size, train.learning_rate) == (30, 32, 7e-4)
    assert (train.augment.mixup_probability, train.schedule.shape) == (0.0, "cosine")
    assert plan_training(FinetuneConfig(mixup_probability=0.3), make_clips(50)).augment.mixup_probability == 0.3
    assert plan_training(FinetuneConfig(init="ast.pth"), make_clips(50)).augment.mixup_probability == 0.5


def test_few_long_clips_define_neither_the_window_nor_the_masks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clips = make_clips(98, clip_ms=1_000) + make_clips(2, clip_ms=9_000)
    assert plan_model(FinetuneConfig(), clips, 2).num_frames == 112
    assert "2 of 100 clips are longer than the model's window of 1.1 s" in caplog.text
    assert plan_training(FinetuneConfig(), clips).augment.max_time_mask_frames == 20


def test_model_has_the_length_of_the_clips_and_the_shape_of_its_weights(tmp_path: Path) -> None:
    clips = make_clips(5, clip_ms=1_000)
    assert plan_model(FinetuneConfig(size="tiny"), clips, 7) == ASTConfig.tiny(num_classes=7, num_frames=112)
    assert plan_model(FinetuneConfig(), clips, 7).width == ASTConfig.nano().width, (
        "never a large random model by default"
    )
    shape = ASTConfig(3, num_frames=256, freq_stride=16, time_stride=16, width=24, depth=1, num_heads=1)
    export_safetensors(AST(shape), tmp_path / "ast.safetensors")
    found = plan_model(FinetuneConfig(init=str(tmp_path / "ast.safetensors")), clips, 7)
    assert (found.num_classes, found.num_frames, found.width, found.freq_stride) == (7, 112, 24, 16)


def test_settings_of_folds_are_the_same_for_all_folds() -> None:
    clips = [LabelledClip(Path(str(index)), ("dog",), f"fold{1 + index % 10}", 0, 1_000) for index in range(109)]
    folds = list_folds(clips)
    assert folds == [f"fold{number}" for number in range(1, 11)]
    assert count_training_clips(clips) == 98
    train = plan_training(FinetuneConfig(), clips)
    assert (train.eval_split, train.train_splits) == ("fold1", tuple(folds[1:]))
    last = plan_fold(train, folds, "fold10")
    assert (last.eval_split, last.train_splits, last.num_epochs) == ("fold10", tuple(folds[:9]), train.num_epochs)


def test_negative_clips_are_drawn() -> None:
    clips = [*make_clips(10), LabelledClip(Path("quiet"), (), "train", 0, 10_000)]
    train = plan_training(FinetuneConfig(), clips)
    assert (train.sampler, train.loss) == ("uniform", "bce")


@pytest.mark.parametrize(
    ("argv", "use_gpu", "head_only"),
    [
        ([], None, None),
        (["--no-use-gpu", "--head-only"], False, True),
        (["--use_gpu", "--no-head-only", "--size", "nano"], True, False),
        (["--use-gpu", "False"], False, None),
    ],
)
def test_switches_may_be_unset_on_or_off(argv: list[str], use_gpu: bool | None, head_only: bool | None) -> None:
    config = COMMAND_LINE.parse(argv)
    assert (config.ray.use_gpu, config.head_only) == (use_gpu, head_only)


@pytest.mark.parametrize(
    ("config", "has_gpu", "num_clips", "expected"),
    [
        (FinetuneConfig(), False, 5_000, True),
        (FinetuneConfig(), True, 5_000, False),
        (FinetuneConfig(), True, 100, True),
        (FinetuneConfig(head_only=False), False, 100, False),
        (FinetuneConfig(num_epochs=3), False, 100, False),
        (FinetuneConfig(resume="finetune-1"), False, 100, False),
        (FinetuneConfig(head_only=True, num_epochs=3), True, 5_000, True),
    ],
)
def test_only_the_head_is_fitted_without_a_gpu_or_with_few_clips(
    config: FinetuneConfig, has_gpu: bool, num_clips: int, expected: bool
) -> None:
    clips = [LabelledClip(Path("a"), ("dog",), "train", 0, 1000)] * num_clips
    assert choose_head_only(config, has_gpu, clips) == expected
