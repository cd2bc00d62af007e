"""What a training says of its time before it begins."""

import logging

import pytest
import torch

from ast_model.config import ASTConfig, TrainConfig
from ast_model.training.job import Job
from jobs.config import RayConfig
from jobs.launch import estimate
from jobs.launch.estimate import log_estimate, measure_sample_s
from pipeline.snapshots.snapshot import Snapshot

SHAPE = ASTConfig(num_frames=128, freq_stride=16, time_stride=16, width=16, depth=2, num_heads=2)


def test_samples_time_and_faster_ways_are_said(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(estimate, "measure_sample_s", lambda model: 2.0)
    caplog.set_level(logging.INFO)
    num_eval = snapshot.stats["num_clips"]["eval"]
    train = TrainConfig(num_epochs=3, draws_per_epoch=50)
    job = Job(train, SHAPE, snapshot, "run", None)  # pyright: ignore[reportArgumentType]
    log_estimate(job, RayConfig("2"), ["--size nano"])
    seconds = round((150 + 3 * num_eval / 3) * 2.0 / 2)
    assert f"3 epochs of 50 samples, 1000 ms each: about 0:0{seconds // 60}:{seconds % 60:02d}" in caplog.text
    assert "faster: --size nano; a GPU" in caplog.text
    assert "--clip-s" not in caplog.text, "ten seconds fill a window of 1.28 s"
    log_estimate(Job(train, ASTConfig(), snapshot, "run", None), RayConfig("1", use_gpu=True))  # pyright: ignore[reportArgumentType]
    assert "by computation, on H200s" in caplog.text


def test_a_sample_is_measured_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "MEASURE_S", 0.01)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert 0 < measure_sample_s(SHAPE) < 10
    monkeypatch.setattr(estimate, "MAX_MEASURED_FLOPS", 1e6)
    assert measure_sample_s(ASTConfig.nano(num_frames=128)) > 0
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
