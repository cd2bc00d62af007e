import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel

from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.config import AugmentConfig, CheckpointConfig, RegulariseConfig, ScheduleConfig
from ast_model.data.loader import Batch
from ast_model.distributed import World
from ast_model.evaluation.ensemble import score_checkpoints
from ast_model.evaluation.predictions import LAST, load_predictions, predictions_name
from ast_model.training.step import Stepper
from ast_model.training.trainer import Trainer
from pipeline.errors import TrainingError
from tests.ast_model.training.alone import ALONE, NUM_STEPS, MakeJob, final_state, train


def test_micro_batches_and_fused_adam_equal_torchs_plain_adam(make_job: MakeJob) -> None:
    job = make_job(micro_batch_size=1, schedule=ScheduleConfig(num_warmup_steps=0), weight_decay=0.01)
    trainer = Trainer(job, ALONE)
    whole = Trainer(dataclasses.replace(job, config=dataclasses.replace(job.config, micro_batch_size=4)), ALONE)
    plain = torch.optim.Adam(whole.state.model.parameters(), 1e-3, (0.95, 0.999), weight_decay=0.01, foreach=False)
    parts, wholes = (each.data.batches(0, range(3), ALONE) for each in (trainer, whole))
    for step in range(3):
        result = trainer.stepper.train_step(0, step, parts)
        plain.zero_grad()
        loss = whole.stepper._backward(next(wholes), 0, step, slice(0, 4)).sum()
        plain.step()
        torch.testing.assert_close(result.loss, loss)
    # The keys' bias does not affect attention: its gradient is rounding noise, which Adam scales to full steps.
    ours, theirs = (
        {name: value for name, value in each.state.model.state_dict().items() if not name.endswith("qkv.bias")}
        for each in (trainer, whole)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def spoil(monkeypatch: pytest.MonkeyPatch, rows: set[int]) -> None:
    """Replace some rows of the batches by NaN."""
    move = Batch.to

    def move_spoilt(self: Batch, device: torch.device) -> Batch:
        batch = move(self, device)
        clips = batch.clips.clone()
        clips[[row in rows for row in batch.rows]] = math.nan
        return dataclasses.replace(batch, clips=clips)

    monkeypatch.setattr(Batch, "to", move_spoilt)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_non_finite_step_is_skipped_counted_and_logged_with_its_clip(
    make_job: MakeJob, monkeypatch, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    draws = {"sampler": "uniform", "draws_per_epoch": 16, "augment": AugmentConfig(mixup_probability=0)}
    job = make_job(num_epochs=1, precision=precision, **draws)
    batches = list(Trainer(job, ALONE).data.batches(0, range(4), ALONE))
    row = int(batches[3].rows[1])  # a sample of the second step
    spoil(monkeypatch, {row})
    trainer, history = train(job)
    steps = {value.item() for name, value in final_state(job)["optimizer"].items() if name.endswith("/step")}
    assert steps == {3}
    assert trainer.state.loop.num_steps_skipped == 1
    assert all(value.isfinite().all() for value in trainer.state.model.state_dict().values())
    assert math.isfinite(history[0]["train/epoch_loss"])
    key = job.snapshot.index["key"][row].as_py()
    assert f"epoch 1, step 2 skipped: samples whose loss is not finite: {key}" in caplog.text
    notes: Any = job.tracker
    assert notes.metrics[-1][1]["train/skipped_steps"] == 1


def test_too_many_bad_steps_in_a_row_end_the_run_with_an_intact_checkpoint(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(max_bad_steps=3, checkpoints=CheckpointConfig(every_steps=2, every_minutes=None))
    spoil(monkeypatch, set(range(len(job.snapshot.index))))
    with pytest.raises(TrainingError, match=r"[34] steps in a row.*last checkpoint is good.*--train.precision fp32"):
        train(job)
    state = final_state(job)
    fresh = Trainer(make_job("fresh"), ALONE).state.model.state_dict()
    torch.testing.assert_close(state["model"], dict(fresh), rtol=0, atol=0)


def test_lower_precisions_reach_nearly_the_same_loss(make_job: MakeJob) -> None:
    losses = {}
    for precision in ("fp32", "bf16", "fp16"):
        job = make_job(precision, num_epochs=1, precision=precision)
        losses[precision] = train(job)[1][0]["train/epoch_loss"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_activation_checkpointing_gives_identical_weights(make_job: MakeJob) -> None:
    past = {"layer_decay": 0.7, "regularise": RegulariseConfig(patchout_freq=2, patchout_time=8, drop_path=0.3)}
    kept, recomputed = (
        make_job(run, activation_checkpointing=run == "recomputed", num_epochs=1, **past)
        for run in ("kept", "recomputed")
    )
    train(kept)
    train(recomputed)
    torch.testing.assert_close(final_state(recomputed), final_state(kept), rtol=0, atol=0)


def test_out_of_memory_error_names_settings_to_change(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = Trainer(make_job(), ALONE)
    monkeypatch.setattr(Stepper, "_train_step", run_out)
    with pytest.raises(
        TrainingError, match=r"micro-batch-size 2; try --train.micro-batch-size 1 .*or --train.activation-checkpointing"
    ):
        trainer.run()


def test_metrics_and_checkpoints_are_logged(make_job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    job = make_job()
    train(job)
    notes: Any = job.tracker
    assert [step for step, _ in notes.metrics] == [2, 4, 6, 8, 10, 12]
    expected = {
        "train/loss",
        "train/learning_rate",
        "train/grad_norm",
        "train/skipped_steps",
        "system/samples_per_s",
        "system/data_wait_share",
        "system/memory_peak_gib",
        "system/num_ranks",
    }
    for _, metrics in notes.metrics:
        assert metrics.keys() == expected
        assert 0 <= metrics["system/data_wait_share"] < 1
    assert notes.checkpoints == ["epoch-0001-step-00000000", "epoch-0002-step-00000000"]


def test_head_is_float32_in_every_precision_so_scores_do_not_tie(make_job: MakeJob) -> None:
    model = Trainer(make_job(), ALONE).state.model.eval()
    torch.nn.init.normal_(model.head.linear.weight, std=0.01)
    fbank_BTM = torch.randn(400, 128, 128)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits_BC = model(fbank_BTM)
    assert logits_BC.dtype == torch.float32
    assert all(len(logits_B.unique()) == len(fbank_BTM) for logits_B in logits_BC.T)
    assert any(len(logits_B.bfloat16().unique()) < len(fbank_BTM) for logits_B in logits_BC.T), "bf16 would tie"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_evaluating_a_checkpoint_gives_the_trainings_metric(make_job: MakeJob, precision: str) -> None:
    job = make_job(num_epochs=1, precision=precision)
    _, history = train(job)
    (name,) = list_checkpoints(job.store, job.folder)
    (member,) = score_checkpoints((job.store.url(name),), job.snapshot, job.config.eval_split, batch_size=3)
    assert member.evaluation.metrics_by_name["mAP"] == pytest.approx(history[0]["eval/mAP"], rel=1e-9)


def test_evaluation_excludes_and_logs_a_clip_with_non_finite_scores(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(num_epochs=1)
    rows = job.snapshot.rows_of((job.config.eval_split,))
    spoil(monkeypatch, {int(rows[2])})
    _, history = train(job)
    assert math.isfinite(history[0]["eval/mAP"])
    key = job.snapshot.index["key"][int(rows[2])].as_py()
    assert f"excluded 1 of {len(rows)} evaluation clips with non-finite scores: {key}" in caplog.text
    kept = load_predictions(job.store, predictions_name(job.run, LAST))
    assert kept.keys.tolist() == job.snapshot.index["key"].take(np.delete(rows, 2)).to_pylist()


def test_epoch_is_saved_before_a_failing_evaluation(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, failing = make_job("whole"), make_job("failing")
    _, expected = train(whole)

    def run_out(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as context:
        context.setattr("ast_model.training.trainer.evaluate", run_out)
        with pytest.raises(TrainingError, match=r"try --train.micro-batch-size 1"):
            train(failing)
    trainer = Trainer(failing, ALONE)
    assert trainer.num_steps_done == NUM_STEPS
    for epoch, other in zip(trainer.run(), expected, strict=True):
        assert epoch == pytest.approx(other)
    torch.testing.assert_close(final_state(failing), final_state(whole), rtol=0, atol=0)


def test_evaluation_without_any_finite_score_ends_the_run(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(num_epochs=1)
    spoil(monkeypatch, set(job.snapshot.rows_of((job.config.eval_split,)).tolist()))
    with pytest.raises(TrainingError, match="expected finite scores"):
        train(job)


class OneOfMany(World):
    """World of one rank that wraps its model like several ranks."""

    def wrap(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)


@pytest.fixture
def one_of_many(tmp_path: Path) -> Iterator[World]:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield OneOfMany(0, 1, torch.device("cpu"))
    torch.distributed.destroy_process_group()


@pytest.mark.process  # starts compiler processes
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch reads it while compiling
@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}], ids=["kept", "recomputed"])
@pytest.mark.parametrize("what", ["blocks", "model"])
def test_compiling_once_per_micro_batch_size_gives_the_same_losses(
    make_job: MakeJob, monkeypatch, caplog: pytest.LogCaptureFixture, one_of_many: World, what: str, settings: dict
) -> None:
    caplog.set_level(logging.INFO, logger="ast_model")
    # Micro-batches of 3 and 1 samples, each with other mixed clips, masks, noise and patches.
    augment = AugmentConfig(max_freq_mask_bins=16, max_time_mask_frames=96, noise=True, max_roll_frames=10)
    past = {"micro_batch_size": 3, "regularise": RegulariseConfig(patchout_freq=2, patchout_time=8, drop_path=0.3)}
    plain = Trainer(make_job("plain", augment=augment, **past), ALONE)
    counter, compile_with = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda code, **options: compile_with(code, backend=counter, **options))
    compiled = Trainer(make_job("compiled", compile=what, augment=augment, **past, **settings), one_of_many)
    plain_batches, batches = (each.data.batches(0, range(6), ALONE) for each in (plain, compiled))
    losses, num_compiled = [], []
    for step in range(6):
        losses.append(
            [
                plain.stepper.train_step(0, step, plain_batches).loss.item(),
                compiled.stepper.train_step(0, step, batches).loss.item(),
            ]
        )
        num_compiled.append(counter.frame_count)
    # The last block computes fewer tokens, with separate code.
    assert num_compiled == [{"blocks": 4, "model": 2}[what]] * 6
    for expected, loss in losses:
        assert loss == pytest.approx(expected, rel=1e-4)
    assert caplog.text.count(f"compiled the {what}: the first step took") == 1
    torch.compiler.reset()
