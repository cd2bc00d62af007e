"""Kill trainings at random moments. Part of `make rehearsal`."""

import os
import pickle
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ast_model.checkpoints.checkpoint import list_checkpoints, newest_checkpoint
from ast_model.config import CheckpointConfig
from ast_model.training.job import TrainingJob

RANK = Path(__file__).with_name("rank.py")


def start(job: TrainingJob, num_ranks: int, folder: Path) -> list[subprocess.Popen]:
    """Start a training in `num_ranks` processes."""
    settings = (job.config, job.model, job.snapshot.store, job.snapshot.snapshot_id, job.run, -1)
    (folder / "job").write_bytes(pickle.dumps(settings))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WORLD_SIZE": str(num_ranks)}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(RANK), str(folder / "job"), str(folder / "out")]
    return [
        subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(num_ranks)
    ]


@pytest.mark.rehearsal
@pytest.mark.parametrize(("num_ranks", "num_kills"), [(1, 6), (2, 4)])
def test_kills_at_random_moments_do_not_change_the_weights(
    make_job: Callable[..., TrainingJob], tmp_path: Path, num_ranks: int, num_kills: int
) -> None:
    settings = {
        "num_epochs": 6,
        "draws_per_epoch": 800,
        "average_last_epochs": 4,
        "checkpoints": CheckpointConfig(every_steps=10, every_minutes=None),
    }
    whole, killed = make_job("whole", **settings), make_job("killed", **settings)
    (tmp_path / "snapshots").symlink_to(os.path.realpath(tmp_path / "shards").replace("shards", "snapshots"))
    assert [rank.wait() for rank in start(whole, num_ranks, tmp_path)] == [0] * num_ranks
    chance, positions = random.Random(), []
    for _ in range(num_kills):
        before = list_checkpoints(killed.snapshot.store, killed.folder)[-1:]
        ranks = start(killed, num_ranks, tmp_path)
        while list_checkpoints(killed.snapshot.store, killed.folder)[-1:] == before and ranks[0].poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        for rank in chance.sample(ranks, num_ranks):  # as torchrun does after losing a rank
            rank.kill()
            rank.wait()
        found = newest_checkpoint(killed.snapshot.store, killed.folder)
        assert found is not None
        positions.append((found.loop.epoch, found.loop.step))
    assert [rank.wait() for rank in start(killed, num_ranks, tmp_path)] == [0] * num_ranks
    assert positions == sorted(set(positions)), "each attempt gets further"
    print(f"newest checkpoint (epoch, step) after each kill: {positions}")  # noqa: T201
    for folder in ("checkpoints", "average"):
        ours, theirs = (newest_checkpoint(killed.snapshot.store, f"runs/{run}/{folder}") for run in ("killed", "whole"))
        assert ours is not None
        assert theirs is not None
        assert ours.description["digests"] == theirs.description["digests"]
