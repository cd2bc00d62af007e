"""What a training says of its time before it begins."""

import dataclasses
import logging
import re

import pytest
import torch

from ast_model.config import ASTConfig
from ast_model.flops import forward_flops
from ast_model.training import estimate
from ast_model.training.estimate import log_estimate, measure_cost, warn_of_padding
from ast_model.training.trainer import Trainer
from pipeline.snapshots.snapshot import Snapshot
from tests.ast_model.training.alone import ALONE, NUM_STEPS, MakeJob, final_state, train


@pytest.mark.slow
def test_samples_time_and_faster_ways_are_said_and_nothing_is_changed(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(estimate, "WORTH_SAVING_S", 0.0)
    caplog.set_level(logging.INFO)
    job, quiet = make_job("said", average_last_epochs=2), make_job("quiet", average_last_epochs=2)
    trainer = Trainer(job, ALONE)
    state = torch.get_rng_state()
    log_estimate(trainer, ["--size nano"])
    assert torch.equal(torch.get_rng_state(), state)
    num_eval = len(trainer.data.eval_clips.rows)
    assert re.search(rf"{2 * 4 * NUM_STEPS} samples in 2 epochs, .* ms each on 1 CPU workers", caplog.text)
    assert f"with 3 evaluations of {num_eval} clips (measured on {NUM_STEPS} steps)" in caplog.text
    assert "faster: --size nano; a GPU" in caplog.text
    trainer.run()
    train(quiet)
    for part, tensors in final_state(quiet).items():
        for name, expected in tensors.items():
            assert torch.equal(final_state(job)[part][name], expected), f"{part} {name}"
    caplog.clear()
    log_estimate(Trainer(job, ALONE))
    assert "samples in" not in caplog.text, "nothing is left to do"


def test_what_takes_long_is_measured_in_small(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make_job(), ALONE)
    monkeypatch.setattr(estimate, "MAX_MEASURED_FLOPS", {"cpu": 1.0})
    small, num_times = estimate._in_small(trainer.job, ALONE)
    assert (small.model.depth, small.config.global_batch_size, small.config.micro_batch_size) == (1, 1, 1)
    assert num_times == pytest.approx(4 * forward_flops(trainer.job.model) / forward_flops(small.model))
    cost = measure_cost(trainer)
    assert cost.step_s > 0 and cost.eval_clip_s > 0


def test_a_window_of_mostly_padding_is_warned_of(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_padding(ASTConfig(num_frames=1024), snapshot)
    assert "--clip-s" not in caplog.text
    warn_of_padding(dataclasses.replace(ASTConfig(), num_frames=3000), snapshot)
    assert "--clip-s" in caplog.text
