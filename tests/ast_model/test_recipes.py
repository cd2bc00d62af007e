import dataclasses
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from sklearn.metrics import accuracy_score

from ast_model import recipes
from ast_model.config import ASTConfig, TrainConfig, flatten
from ast_model.evaluation.evaluate import Evaluation
from ast_model.flops import count_parameters
from ast_model.losses import clip_losses, scores_from_logits
from ast_model.metrics import tagging_metrics
from ast_model.model import AST
from ast_model.recipes import NUM_CLIPS, Recipe, scale_batch
from ast_model.training.checks import check_training
from ast_model.training.plan import TrainingPlan
from pipeline.errors import MismatchError
from pipeline.snapshots.snapshot import Snapshot

PAPER = {
    # lr, epochs, batch, loss, mixup, masks of bins and frames, noise and roll, length, mean
    "audioset_balanced": (5e-5, 25, 12, "bce", 0.5, 48, 192, False, 1024, -4.2677393),
    "audioset_full": (1e-5, 5, 12, "bce", 0.5, 48, 192, False, 1024, -4.2677393),
    "esc50": (1e-5, 25, 48, "ce", 0.0, 24, 96, False, 512, -6.6268077),
    "speechcommands": (2.5e-4, 30, 128, "bce", 0.6, 48, 48, True, 128, -6.845978),
}
OURS = (
    *("audioset_full_scaled", "audioset_eat", "audioset_distilled", "audioset_balanced_modern", "audioset_modern"),
    *("fsd50k", "vggsound", "urbansound8k"),
)


@pytest.mark.parametrize("name", PAPER)
def test_presets_match_the_paper(name: str) -> None:
    recipe: Recipe = getattr(recipes, name)()
    train, augment = recipe.train, recipe.train.augment
    found = (train.learning_rate, train.num_epochs, train.global_batch_size, train.loss, augment.mixup_probability)
    masks = (augment.max_freq_mask_bins, augment.max_time_mask_frames, augment.noise)
    assert (*found, *masks, recipe.model.num_frames, train.mean) == PAPER[name]
    assert (recipe.model.width, recipe.model.depth, train.weight_decay) == (768, 12, 5e-7)
    assert (train.sampler == "balanced") == (name == "audioset_full")
    assert all(word in str(getattr(recipes, name).__doc__) for word in ("Command:", "Cost:", "Result:"))


def test_batch_of_192_follows_the_square_root_rule() -> None:
    full, scaled = recipes.audioset_full(), recipes.audioset_full_scaled()
    schedule = dataclasses.replace(full.train.schedule, num_warmup_steps=62, num_steps_per_stair=3)
    settings = {"global_batch_size": 192, "micro_batch_size": 48, "learning_rate": 4e-5, "schedule": schedule}
    assert scaled == Recipe(full.model, dataclasses.replace(full.train, **settings))
    assert scale_batch(full.train, 1) == full.train


@pytest.mark.parametrize(
    "config",
    [
        ASTConfig.tiny(),
        recipes.demo().model,
        ASTConfig(50, 512, width=24, num_heads=2),
        ASTConfig.eat(width=64, num_heads=1),
        ASTConfig.audiomosaic(width=64, num_heads=1),
        ASTConfig.audiomae(width=64, num_heads=1, final_norm=True),
    ],
)
def test_parameter_count_matches_the_model(config: ASTConfig) -> None:
    assert count_parameters(config) == sum(parameter.numel() for parameter in AST(config).parameters())


def test_presets_for_gpus_state_clips_and_cost() -> None:
    assert set(NUM_CLIPS) == {*PAPER, *OURS}
    assert all("Cost:" in str(getattr(recipes, name).__doc__) for name in NUM_CLIPS)


def test_cross_entropy_accepts_soft_targets() -> None:
    random = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(4, 3, generator=random)
    a_BC, b_BC = nnf.one_hot(torch.tensor([0, 1, 2, 2]), 3).float(), nnf.one_hot(torch.tensor([1, 1, 0, 2]), 3).float()
    found_B = clip_losses(logits_BC, 0.3 * a_BC + 0.7 * b_BC, "ce")
    hard_B = [nnf.cross_entropy(logits_BC, targets.argmax(dim=1), reduction="none") for targets in (a_BC, b_BC)]
    torch.testing.assert_close(found_B, 0.3 * hard_B[0] + 0.7 * hard_B[1])


def test_cross_entropy_on_multi_label_clips_is_rejected(snapshot: Snapshot) -> None:
    config = TrainConfig(loss="ce", allow_empty_classes=True, global_batch_size=2, micro_batch_size=2)
    model = dataclasses.replace(recipes.demo().model, num_classes=len(snapshot.labels))
    with pytest.raises(MismatchError, match=r"loss ce needs exactly one class per clip, but \d+ training clips"):
        check_training(TrainingPlan(snapshot, config), model)


def test_accuracy_is_the_main_metric_for_single_label_clips() -> None:
    random = np.random.default_rng(0)
    scores, classes = random.random((50, 4)).astype(np.float32), random.integers(4, size=50)
    targets = np.eye(4, dtype=bool)[classes]
    one = Evaluation(scores, targets, tagging_metrics(scores, targets))
    assert one.main_metric == "accuracy"
    assert one.metrics_by_name["accuracy"] == pytest.approx(accuracy_score(classes, scores.argmax(axis=1)))
    targets[0] = True
    several = Evaluation(scores, targets, tagging_metrics(scores, targets))
    assert (several.main_metric, "accuracy" in several.metrics_by_name) == ("mAP", False)


def test_scores_of_cross_entropy_are_a_softmax() -> None:
    logits_BC = torch.tensor([[1.0, 2.0, 3.0]])
    assert scores_from_logits(logits_BC, "ce").sum() == pytest.approx(1)
    torch.testing.assert_close(scores_from_logits(logits_BC, "bce"), torch.sigmoid(logits_BC))


def test_settings_and_their_json_flatten_to_the_same_text() -> None:
    train = dataclasses.replace(recipes.audioset_full().train, teachers=("a", "b"))
    flat = flatten(train, "train.")
    assert flat == flatten({"train": json.loads(json.dumps(dataclasses.asdict(train)))})
    assert (flat["train.teachers"], flat["train.augment.noise"]) == ("a,b", "False")
    assert flat["train.learning_rate"] == "1e-05"
