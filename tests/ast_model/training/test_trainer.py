import dataclasses
import json
import logging
import math
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf

from ast_model.checkpoints.checkpoint import list_checkpoints, newest_checkpoint, read_checkpoint, remove_checkpoint
from ast_model.config import ASTConfig, AugmentConfig, ScheduleConfig, TrainConfig
from ast_model.evaluation.predictions import AVERAGE, BEST, LAST, load_predictions, predictions_name
from ast_model.losses import clip_losses
from ast_model.training.checks import check_training
from ast_model.training.job import Launcher, TrainingJob
from ast_model.training.plan import TrainingPlan
from ast_model.training.step_metrics import Metrics
from ast_model.training.trainer import Trainer
from pipeline.errors import MismatchError, NoClipsError, TrainingError
from pipeline.snapshots.snapshot import Snapshot
from tests.ast_model.training.alone import ALONE

MODEL = ASTConfig(
    num_classes=15,
    num_frames=256,
    patch_freq=32,
    patch_time=32,
    freq_stride=32,
    time_stride=32,
    width=16,
    depth=1,
    num_heads=2,
)
CONFIG = TrainConfig(
    num_epochs=3,
    global_batch_size=6,
    micro_batch_size=4,
    learning_rate=1e-2,
    schedule=ScheduleConfig(num_warmup_steps=2, num_steps_per_stair=1, num_epochs_before_decay=2),
    augment=AugmentConfig(max_freq_mask_bins=16, max_time_mask_frames=40),
    average_last_epochs=2,
    log_every_steps=1,
)


class Recorder:
    """Tracker that records metrics and checkpoints."""

    def __init__(self) -> None:
        self.steps: dict[int, dict[str, float]] = {}
        self.checkpoints: dict[str, str] = {}
        self.repeated_epochs: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if "eval/mAP" in metrics:
            self.repeated_epochs[step] = dict(metrics)
            return
        assert step not in self.steps, "a step is logged once"
        self.steps[step] = dict(metrics)

    def log_late_params(self, facts: Mapping[str, str]) -> None:
        pass

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        self.checkpoints[name] = address


def make_job(snapshot: Snapshot, run: str, **changes) -> TrainingJob:
    return TrainingJob(dataclasses.replace(CONFIG, **changes), MODEL, snapshot, run, Recorder())


def curve(job: TrainingJob, name: str = "train/loss") -> list[float]:
    assert isinstance(job.tracker, Recorder)
    return [metrics[name] for metrics in job.tracker.steps.values()]


def check(job: TrainingJob) -> None:
    check_training(TrainingPlan(job.snapshot, job.config), job.model)


class LostError(Exception):
    """Simulated loss of the machine."""


class LoseIt(Launcher):
    """Stop signal that loses the machine after `num_steps` steps."""

    def __init__(self, num_steps: int) -> None:
        self.num_left = num_steps

    def is_stopping(self) -> bool:
        if self.num_left == 0:
            raise LostError
        self.num_left -= 1
        return False


def train_an_epoch(job: TrainingJob) -> None:
    """Train until an epoch's checkpoint is written, then lose the machine."""
    trainer = Trainer(job, ALONE)
    trainer.launcher = LoseIt(trainer.plan.num_steps)
    with pytest.raises(LostError):
        trainer.run()


@pytest.fixture(scope="module")
def whole(snapshot: Snapshot) -> tuple[TrainingJob, list[Metrics]]:
    """An uninterrupted training."""
    job = make_job(snapshot, "whole")
    return job, Trainer(job, ALONE).run()


def test_training_learns_logs_and_saves_predictions(whole: tuple[TrainingJob, list[Metrics]]) -> None:
    job, history = whole
    assert isinstance(job.tracker, Recorder)
    num_steps = len(job.snapshot.rows_of(CONFIG.train_splits)) // CONFIG.global_batch_size
    assert list(job.tracker.steps) == list(range(1, 3 * num_steps + 1))
    assert curve(job)[-1] < 0.9 * curve(job)[0]
    assert [metrics["epoch"] for metrics in history] == [1, 2, 3, 3]
    assert all(0 < metrics["eval/mAP" if n < 3 else "eval/average/mAP"] <= 1 for n, metrics in enumerate(history))
    kept = {
        name: load_predictions(job.snapshot.store, predictions_name(job.run, name)) for name in (BEST, LAST, AVERAGE)
    }
    assert {scores.scores.shape for scores in kept.values()} == {(len(job.snapshot.rows_of(("eval",))), 15)}
    assert kept[LAST].evaluation.metrics.mAP == history[2]["eval/mAP"]
    assert kept[BEST].evaluation.metrics.mAP == max(metrics["eval/mAP"] for metrics in history[:3])
    assert len(job.tracker.checkpoints) == 4
    rates = [metrics["train/learning_rate"] for metrics in job.tracker.steps.values()]
    assert rates[:3] == [0, CONFIG.learning_rate / 2, CONFIG.learning_rate]
    assert rates[-1] == CONFIG.learning_rate / 2


def test_interrupted_training_resumes_bit_for_bit(snapshot: Snapshot, whole: tuple[TrainingJob, list[Metrics]]) -> None:
    expected_job, expected_history = whole
    job = make_job(snapshot, "stopped")
    for _ in range(2):
        train_an_epoch(job)
    assert Trainer(job, ALONE).run() == expected_history
    assert curve(job) == curve(expected_job)
    for folder in ("checkpoints", "average"):
        found, expected = (newest_checkpoint(snapshot.store, f"runs/{run}/{folder}") for run in ("stopped", "whole"))
        assert found is not None
        assert expected is not None
        assert found.loop.name == expected.loop.name
        assert found.description["digests"] == expected.description["digests"]


def test_resumed_training_logs_earlier_epochs_again(snapshot: Snapshot) -> None:
    for _ in range(2):
        train_an_epoch(make_job(snapshot, "moved"))
    tracker = Trainer(make_job(snapshot, "moved"), ALONE).job.tracker
    assert isinstance(tracker, Recorder)
    assert [name[:10] for name in tracker.checkpoints] == ["epoch-0001", "epoch-0002"]
    for name in list_checkpoints(snapshot.store, "runs/moved/checkpoints")[:-1]:
        remove_checkpoint(snapshot.store, name)
    tracker = Trainer(make_job(snapshot, "moved"), ALONE).job.tracker
    assert isinstance(tracker, Recorder)
    assert (list(tracker.repeated_epochs), len(tracker.checkpoints)) == ([1], 1)


def test_damaged_checkpoint_costs_only_its_epoch(
    snapshot: Snapshot, whole: tuple[TrainingJob, list[Metrics]], caplog: pytest.LogCaptureFixture
) -> None:
    _, expected_history = whole
    for _ in range(2):
        train_an_epoch(make_job(snapshot, "broken"))
    newest = list_checkpoints(snapshot.store, "runs/broken/checkpoints")[-1]
    file = Path(snapshot.store.path(f"{newest}/optimizer.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        assert Trainer(make_job(snapshot, "broken"), ALONE).run() == expected_history
    assert "falling back to the previous checkpoint" in caplog.text


def test_averaged_weights_are_the_mean_of_the_epochs(
    snapshot: Snapshot, whole: tuple[TrainingJob, list[Metrics]]
) -> None:
    epochs = [
        read_checkpoint(snapshot.store, name) for name in list_checkpoints(snapshot.store, "runs/whole/checkpoints")
    ]
    epochs = [each for each in epochs if each.loop.epoch > 1]  # the first one is kept as well if it was the best
    assert [each.loop.epoch for each in epochs] == [2, 3]
    average = newest_checkpoint(snapshot.store, "runs/whole/average")
    assert average is not None
    for name, value in average.model.items():
        torch.testing.assert_close(value, torch.stack([each.model[name] for each in epochs]).mean(dim=0))


def test_micro_batches_add_up_to_the_global_batch(snapshot: Snapshot) -> None:
    curves = []
    for size in (6, 4, 1):
        job = make_job(snapshot, f"micro-{size}", micro_batch_size=size, num_epochs=1, average_last_epochs=0)
        Trainer(job, ALONE).run()
        curves.append([curve(job), curve(job, "train/grad_norm")])
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)
    np.testing.assert_allclose(curves[2], curves[0], rtol=1e-5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def train_two(snapshot: Snapshot, run: str, folder: Path, stop_at: int = -1) -> dict:
    """Train in two processes, and return the main rank's log."""
    (folder / "job").write_bytes(pickle.dumps((CONFIG, MODEL, snapshot.store, snapshot.snapshot_id, run, stop_at)))
    command = [sys.executable, str(Path(__file__).with_name("rank.py")), str(folder / "job"), str(folder / "out")]
    # The variables that torchrun would set, without its start-up time.
    env = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    ranks = [subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    return json.loads((folder / "out").read_text())


@pytest.mark.rehearsal  # gradients and draws of two ranks also have quick tests
def test_two_ranks_learn_like_one(snapshot: Snapshot, whole: tuple[TrainingJob, list[Metrics]], tmp_path: Path) -> None:
    out = train_two(snapshot, "two", tmp_path)
    job, history = whole
    assert out["world_size"] == 2
    for name in (
        "train/loss",
        "train/grad_norm",
    ):  # with Adam, a wrong scale of the gradients would not show in the loss
        np.testing.assert_allclose([metrics[name] for metrics in out["steps"]], curve(job, name), rtol=1e-4)
    for found, expected in zip(out["history"], history, strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.process
def test_changing_the_number_of_ranks_keeps_the_samples(
    snapshot: Snapshot, whole: tuple[TrainingJob, list[Metrics]], tmp_path: Path
) -> None:
    first = train_two(snapshot, "changing", tmp_path, stop_at=1)
    assert first["history"] == []
    alone = make_job(snapshot, "changing")
    host = re.escape(socket.gethostname())
    assert re.match(
        rf"2 ranks: 2 × {host} \(CPU .*, 1 threads, torch {re.escape(torch.__version__)}\)$",
        first["facts"]["ranks.devices"],
    )
    num_bytes = sum(4 * parameter.numel() for parameter in Trainer(alone, ALONE).state.model.parameters())
    assert float(first["facts"]["ranks.gradient_mb"]) == pytest.approx(num_bytes / 1e6, abs=0.05)
    assert float(first["facts"]["ranks.exchange_gb_per_s"]) > 0
    assert float(first["facts"]["ranks.needed_gb_per_s"]) > 0
    trainer = Trainer(alone, ALONE)
    assert trainer.state.loop.step == 2, "the others learn a step later that one wants to stop"
    trainer.launcher = LoseIt(trainer.plan.num_steps)
    with pytest.raises(LostError):
        trainer.run()
    second = train_two(snapshot, "changing", tmp_path)
    steps = {metrics["step"]: metrics["train/loss"] for metrics in first["steps"]}
    assert isinstance(alone.tracker, Recorder)
    steps |= {step: metrics["train/loss"] for step, metrics in alone.tracker.steps.items()}
    steps |= {metrics["step"]: metrics["train/loss"] for metrics in second["steps"]}
    job, history = whole
    np.testing.assert_allclose([steps[step] for step in sorted(steps)], curve(job), rtol=1e-4)
    for found, expected in zip(second["history"], history, strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


def test_classes_without_training_clips_are_listed(snapshot: Snapshot) -> None:
    job = make_job(snapshot, "empty", train_splits=("balanced_train",))
    with pytest.raises(NoClipsError, match=r"of 15 classes have no training clip: .*Siren"):
        check(job)
    allowed = dataclasses.replace(job.config, allow_empty_classes=True, global_batch_size=1)
    check(dataclasses.replace(job, config=allowed))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_splits": ("mine",)}, NoClipsError, "no clips in mine"),
        ({"eval_split": "mine"}, NoClipsError, "no clips in mine"),
        ({"global_batch_size": 1000}, NoClipsError, "global batch of 1000 per epoch"),
    ],
)
def test_missing_clips_and_unfilled_batches_are_rejected(
    snapshot: Snapshot, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check(make_job(snapshot, "nothing", **changes))


def test_model_with_another_number_of_classes_is_rejected(snapshot: Snapshot) -> None:
    job = dataclasses.replace(make_job(snapshot, "other"), model=dataclasses.replace(MODEL, num_classes=7))
    with pytest.raises(MismatchError, match=r"a model with 15 classes.* found 7 classes"):
        check(job)


def test_unavailable_features_are_rejected(snapshot: Snapshot) -> None:
    wide = dataclasses.replace(make_job(snapshot, "wide"), model=dataclasses.replace(MODEL, num_mel_bins=64))
    with pytest.raises(MismatchError, match="128 mel bins, like the fbanks, found 64"):
        check(wide)
    settings = {**snapshot.manifest["settings"], "keep_audio": False}
    silent = dataclasses.replace(snapshot, manifest={**snapshot.manifest, "settings": settings})
    with pytest.raises(MismatchError, match=r"--train.features waveform needs audio, but snapshot .* was made without"):
        check(make_job(silent, "silent", features="waveform"))


def test_normalisation_far_from_the_data_is_reported(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    check(make_job(snapshot, "near", mean=snapshot.mean + 0.1, std=snapshot.std))
    assert "the data's are" not in caplog.text
    check(make_job(snapshot, "far", mean=snapshot.mean + 5, std=snapshot.std))
    assert f"the data's are {snapshot.mean:.2f} and {snapshot.std:.2f}" in caplog.text


def test_training_on_stored_audio_equals_training_on_fbanks(snapshot: Snapshot) -> None:
    changes: dict[str, Any] = {"num_epochs": 1, "average_last_epochs": 0, "group_draws": 20}
    changes["augment"] = dataclasses.replace(CONFIG.augment, mixup_probability=0.0)
    stored = make_job(snapshot, "stored", **changes)
    kept = make_job(snapshot, "kept", **changes, features="waveform")
    for job in (stored, kept):
        Trainer(job, ALONE).run()
    assert curve(kept) == pytest.approx(curve(stored), rel=1e-3)


def test_resuming_on_another_snapshot_is_rejected(snapshot: Snapshot, whole: tuple[TrainingJob, list[Metrics]]) -> None:
    other = dataclasses.replace(snapshot, snapshot_id="another")
    with pytest.raises(MismatchError, match=rf"--snapshot: {snapshot.snapshot_id} then, another now"):
        Trainer(make_job(other, "whole"), ALONE)


def test_persistently_non_finite_loss_stops_the_run(snapshot: Snapshot) -> None:
    job = make_job(snapshot, "nan", learning_rate=1e30, schedule=ScheduleConfig(num_warmup_steps=0), max_bad_steps=2)
    with pytest.raises(TrainingError, match=r"steps in a row up to epoch \d, step \d+ had .*--train.learning-rate"):
        Trainer(job, ALONE).run()


def test_losses_equal_torchs() -> None:
    random = torch.Generator().manual_seed(0)
    logits_BC, soft_BC = torch.randn(5, 7, generator=random), torch.rand(5, 7, generator=random)
    bce = nnf.binary_cross_entropy_with_logits(logits_BC, soft_BC)
    torch.testing.assert_close(clip_losses(logits_BC, soft_BC, "bce").mean(), bce)
    classes = torch.tensor([0, 6, 3, 3, 1])
    one_hot_BC = nnf.one_hot(classes, 7).float()
    torch.testing.assert_close(clip_losses(logits_BC, one_hot_BC, "ce").mean(), nnf.cross_entropy(logits_BC, classes))
    assert math.isfinite(float(bce))
