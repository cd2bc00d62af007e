from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from ast_model.config import AugmentConfig
from ast_model.losses import clip_losses
from ast_model.teachers.store import publish_teacher, write_rows
from ast_model.training.data import TrainingData
from ast_model.training.job import TrainingJob
from ast_model.training.plan import TrainingPlan
from ast_model.training.trainer import Trainer
from jobs.training.teacher_scores import check_teachers, open_teachers
from pipeline.errors import ConfigError, MismatchError
from tests.ast_model.training.alone import ALONE

SHARE = 0.25


def keep_teacher(job: TrainingJob, folder: Path, name: str, rows: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """Store random scores of some clips, and return the scores by row."""
    scores = np.random.default_rng(seed).random((len(rows), len(job.snapshot.labels))).astype(np.float32)
    clips = write_rows(folder / name, [scores], rows, scores.shape[1])
    facts = {"mAP": 0.5, "num_graded": 0, "stated_mAP": None, "found": "probabilities", "sources": ()}
    facts |= {"name": name, "mids": job.snapshot.labels.mids, "snapshot": job.snapshot.snapshot_id}
    publish_teacher(job.store, folder / name, job.snapshot.index["key"].take(pa.array(clips)), facts)
    return dict(zip(rows.tolist(), scores, strict=True))


def read(job: TrainingJob) -> TrainingData:
    plan = TrainingPlan(job.snapshot, job.config)
    return TrainingData(plan, job.model.num_frames, open_teachers(plan))


def test_targets_mix_in_the_mean_of_the_teachers_that_scored_a_clip(
    make_job: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    augment = AugmentConfig(mixup_probability=0)
    plain = make_job(augment=augment)
    rows = plain.snapshot.rows_of(plain.config.train_splits)
    first = keep_teacher(plain, tmp_path, "first", rows[: len(rows) * 2 // 3], 1)
    second = keep_teacher(plain, tmp_path, "second", rows[len(rows) // 3 : len(rows) * 3 // 4], 2)
    taught = make_job(augment=augment, teachers=("first", "second"), teacher_share=SHARE)
    data, alone = read(taught), read(plain)
    found_NC, labels_NC = (each.clips.read_clips(np.arange(len(rows))).targets_BC for each in (data, alone))
    for row, found_C, labels_C in zip(rows.tolist(), found_NC, labels_NC, strict=True):
        scores = [each[row] for each in (first, second) if row in each]
        expected_C = labels_C
        if scores:
            teacher_C = torch.from_numpy(np.mean(scores, axis=0))
            expected_C = (1 - SHARE) * labels_C + SHARE * teacher_C
            logits_C = torch.randn(len(labels_C))
            losses = [clip_losses(logits_C[None], each_C[None], "bce") for each_C in (labels_C, teacher_C, expected_C)]
            torch.testing.assert_close(losses[2], (1 - SHARE) * losses[0] + SHARE * losses[1])
        torch.testing.assert_close(found_C, expected_C, rtol=0, atol=1e-3)


def test_training_learns_from_a_teacher(make_job: Callable[..., TrainingJob], tmp_path: Path) -> None:
    plain = make_job(num_epochs=1)
    keep_teacher(plain, tmp_path, "t", plain.snapshot.rows_of(plain.config.train_splits), 0)
    taught = make_job("taught", num_epochs=1, teachers=("t",), teacher_share=1.0)
    (metrics,) = Trainer(taught, ALONE, teachers=open_teachers(TrainingPlan(taught.snapshot, taught.config))).run()
    assert metrics["train/epoch_loss"] > Trainer(plain, ALONE).run()[0]["train/epoch_loss"]  # the scores are random


def test_missing_teachers_and_scores_of_other_clips_are_rejected(
    make_job: Callable[..., TrainingJob], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(teachers=("t",), allow_empty_classes=True)
    with pytest.raises(ConfigError, match=r"names 't', .*; available: none"):
        check_teachers(TrainingPlan(job.snapshot, job.config))
    keep_teacher(job, tmp_path, "t", job.snapshot.rows_of(("eval",)), 0)
    with pytest.raises(MismatchError, match="scored none of the training clips"):
        check_teachers(TrainingPlan(job.snapshot, job.config))
    rows = job.snapshot.rows_of(job.config.train_splits)
    keep_teacher(job, tmp_path, "t", rows[:3], 0)
    with caplog.at_level("INFO"):
        check_teachers(TrainingPlan(job.snapshot, job.config))
    assert f"t scored 3 of {len(rows)} training clips" in caplog.text


def test_training_with_teachers_but_without_scores_is_rejected(make_job: Callable[..., TrainingJob]) -> None:
    job = make_job(teachers=("t",))
    with pytest.raises(ValueError, match="expected scores of the teachers"):
        TrainingData(TrainingPlan(job.snapshot, job.config), job.model.num_frames)
