"""Kills at random moments: part of `make rehearsal`."""

import dataclasses
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ast_model.checkpoint import list_checkpoints, newest_checkpoint
from ast_model.config import CheckpointConfig
from ast_model.job import Job
from ast_model.train import Trainer
from ast_model.world import World

NUM_KILLS = 6


@pytest.mark.rehearsal
def test_weights_after_kills_at_random_moments_are_those_of_a_run_left_alone(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    settings = {
        "num_epochs": 6,
        "draws_per_epoch": 800,
        "average_from_epoch": 3,
        "checkpoints": CheckpointConfig(every_steps=10, every_minutes=None),
    }
    whole, killed = make_job("whole", **settings), make_job("killed", **settings)
    Trainer(whole, World(0, 1, torch.device("cpu"))).run()
    (tmp_path / "snapshots").symlink_to(os.path.realpath(tmp_path / "shards").replace("shards", "snapshots"))
    job = (killed.config, killed.model, killed.snapshot.store, killed.snapshot.snapshot_id, killed.run, -1)
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    command = [sys.executable, str(Path(__file__).with_name("rank.py")), str(tmp_path / "job"), str(tmp_path / "out")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    chance, positions = random.Random(), []
    for _ in range(NUM_KILLS):
        before = list_checkpoints(killed.snapshot.store, killed.folder)[-1:]
        process = subprocess.Popen(command, env=env)
        while list_checkpoints(killed.snapshot.store, killed.folder)[-1:] == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        process.kill()
        process.wait()
        found = newest_checkpoint(killed.snapshot.store, killed.folder)
        assert found is not None
        positions.append(dataclasses.astuple(found.position))
    subprocess.run(command, env=env, check=True)
    assert positions == sorted(set(positions)), "each attempt gets further"
    print(f"newest checkpoint (epoch, step) after each kill: {positions}")  # noqa: T201
    for folder in ("checkpoints", "average"):
        ours, theirs = (newest_checkpoint(killed.snapshot.store, f"runs/{run}/{folder}") for run in ("killed", "whole"))
        assert ours is not None
        assert theirs is not None
        assert ours.description["digests"] == theirs.description["digests"]
