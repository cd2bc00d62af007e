from collections.abc import Callable

import numpy as np
import pytest
import torch

from ast_model.config import AugmentConfig
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.predictions import save_predictions
from ast_model.metrics import tagging_metrics
from ast_model.training.data import TrainingData
from ast_model.training.job import Job
from ast_model.training.step import clip_losses
from ast_model.training.trainer import Trainer
from pipeline.errors import MismatchError
from tests.ast_model.training.alone import ALONE

SPLITS = ("balanced_train", "unbalanced_train")


def keep_teacher(job: Job, split: str, name: str, seed: int) -> dict[int, np.ndarray]:
    """Store random scores of a split's clips, as an evaluation does, and return them by row."""
    rows = job.snapshot.rows_of((split,))
    scores = np.random.default_rng(seed).random((len(rows), len(job.snapshot.labels)))
    targets = job.snapshot.targets(rows).toarray().astype(bool)
    save_predictions(Evaluation(scores, targets, tagging_metrics(scores, targets)), job.snapshot, ((), split), name, 1)
    return dict(zip(rows.tolist(), scores, strict=True))


def keep_teachers(job: Job) -> tuple[tuple[str, ...], dict[int, np.ndarray]]:
    """Store two teachers' scores of all training clips, a file per teacher and split; return names and mean."""
    names = tuple(f"{teacher}-{split}.npz" for teacher in (1, 2) for split in SPLITS)
    *both, one, two = (
        keep_teacher(job, split, name, seed) for seed, (name, split) in enumerate(zip(names, 2 * SPLITS, strict=True))
    )
    first = both[0] | both[1]
    return names, {row: (first[row] + scores) / 2 for row, scores in (one | two).items()}


def test_targets_are_partly_the_teachers_mean(make_job: Callable[..., Job]) -> None:
    augment = AugmentConfig(mixup_probability=0)
    plain = make_job(augment=augment)
    teachers, scores = keep_teachers(plain)
    taught = make_job(teachers=teachers, teacher_share=0.25, augment=augment)
    drawn, expected = (next(TrainingData(job).batches(0, range(1), ALONE)) for job in (taught, plain))
    for place in range(2):
        teacher_C = torch.from_numpy(scores[expected.rows[place]]).float()
        torch.testing.assert_close(
            drawn.targets_BC[place], 0.75 * expected.targets_BC[place] + 0.25 * teacher_C, rtol=0, atol=1e-3
        )
    logits_BC = torch.randn(2, len(plain.snapshot.labels))
    teacher_BC = (drawn.targets_BC - 0.75 * expected.targets_BC) / 0.25
    two_losses = 0.75 * clip_losses(logits_BC, expected.targets_BC, "bce") + 0.25 * clip_losses(
        logits_BC, teacher_BC, "bce"
    )
    torch.testing.assert_close(clip_losses(logits_BC, drawn.targets_BC, "bce"), two_losses)


def test_a_training_learns_from_a_teacher(make_job: Callable[..., Job]) -> None:
    plain = make_job(num_epochs=1)
    teachers, _ = keep_teachers(plain)
    taught = make_job("taught", num_epochs=1, teachers=teachers, teacher_share=1.0)
    (metrics,) = Trainer(taught, ALONE).run()
    assert metrics["train/epoch_loss"] > Trainer(plain, ALONE).run()[0]["train/epoch_loss"]  # of random scores


def test_a_teacher_that_left_clips_out_is_refused(make_job: Callable[..., Job]) -> None:
    job = make_job(teachers=("part.npz",))
    keep_teacher(job, SPLITS[0], "part.npz", 0)
    with pytest.raises(MismatchError, match=r"scores of all \d+ training clips, .* found 0 to 1"):
        TrainingData(job)
