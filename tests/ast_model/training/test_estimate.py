import dataclasses
import logging
import re

import numpy as np
import pyarrow as pa
import pytest

from ast_model.config import ASTConfig
from ast_model.training import estimate
from ast_model.training.checks import _warn_of_padding
from pipeline.snapshots.snapshot import Snapshot
from tests.ast_model.training.alone import NUM_STEPS, MakeJob, train


def test_samples_left_end_and_faster_device_are_logged_once(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(estimate, "MEASURED_S", 0.0)
    monkeypatch.setattr(estimate, "WORTH_SAVING_S", 0.0)
    caplog.set_level(logging.INFO)
    job = make_job(average_last_epochs=2)
    train(job)
    num_left, num_eval = 4 * (2 * NUM_STEPS - 2), len(job.snapshot.rows_of((job.config.eval_split,)))
    assert re.search(rf"{num_left} samples left in 2 epochs, .* ms each on 1 CPU workers: about", caplog.text)
    assert re.search(rf"with 3 evaluations of {num_eval} clips, until \d{{4}}-.*\(measured on 1 steps\)", caplog.text)
    assert caplog.text.count("samples left in") == 1
    assert "faster: a GPU" in caplog.text


def test_training_of_seconds_logs_no_estimate(make_job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train(make_job(num_epochs=1))
    assert "samples left in" not in caplog.text


def test_mostly_padded_window_is_reported(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_padding(snapshot, ASTConfig(num_frames=1024))
    assert "is padding" not in caplog.text
    _warn_of_padding(snapshot, ASTConfig(num_frames=3000))
    assert "--clip-s 10.0" in caplog.text


def test_advice_never_cuts_most_clips(snapshot: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
    frames = np.full(len(snapshot.index), 100, np.int32)
    frames[: len(frames) // 3] = 1000
    place = snapshot.index.column_names.index("num_frames")
    index = snapshot.index.set_column(place, "num_frames", pa.array(frames))
    _warn_of_padding(dataclasses.replace(snapshot, index=index), ASTConfig(num_frames=1008))
    assert "half of the clips last at most 1.0 s" in caplog.text and "--clip-s" not in caplog.text
