import dataclasses
import logging
import math

import pytest

from ast_model.config import Loss, ScheduleConfig, TrainConfig
from ast_model.training.plan import TrainingPlan
from ast_model.training.stalled_loss import MIN_STEPS, StalledLoss
from pipeline.snapshots.snapshot import Snapshot
from tests.ast_model.training.alone import MakeJob, train

WARNING = "as for guessing"


@pytest.mark.parametrize(
    ("loss", "warmup", "end", "warned_at"),
    [
        ("ce", 0, math.log(10), MIN_STEPS),
        ("ce", 150, math.log(10), 250),
        ("ce", 0, 0.97 * math.log(10), None),
        ("bce", 0, math.log(10), None),
    ],
)
def test_loss_that_stays_at_the_logarithm_of_the_classes_is_reported_once(
    snapshot: Snapshot, caplog: pytest.LogCaptureFixture, loss: Loss, warmup: int, end: float, warned_at: int | None
) -> None:
    schedule = ScheduleConfig(num_warmup_steps=warmup)
    config = TrainConfig(loss=loss, num_epochs=50, draws_per_epoch=80, global_batch_size=4, schedule=schedule)
    stalled = StalledLoss(TrainingPlan(snapshot, config), num_classes=10)
    steps = range(10, 50 * 20 + 1, 10)
    first = next((step for step in steps if stalled.add(end, 10, step) or WARNING in caplog.text), None)
    assert first == warned_at
    for step in steps:
        stalled.add(end, 10, step)
    assert caplog.text.count(WARNING) == (warned_at is not None)


def test_training_without_a_learning_rate_is_reported(make_job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    job = make_job(num_epochs=1, learning_rate=1e-9)
    train(job)
    assert WARNING not in caplog.text
    train(dataclasses.replace(job, config=dataclasses.replace(job.config, loss="ce"), run="stalled"))
    assert WARNING in caplog.text
