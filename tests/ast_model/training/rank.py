"""Train as one rank of a distributed training, and write the main rank's metrics: `rank.py JOB OUT`.

The last rank requests a stop after the number of steps in the job file.
"""

import json
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ast_model.distributed import join_world
from ast_model.training.job import Launcher, TrainingJob
from ast_model.training.rank_check import check_exchange
from ast_model.training.trainer import Trainer
from pipeline.errors import StoppedError
from pipeline.snapshots.snapshot import load_snapshot


class Recorder:
    """Tracker that records the metrics of steps."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self.facts: dict[str, str] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.steps.append({"step": step, **metrics})

    def log_late_params(self, facts: Mapping[str, str]) -> None:
        self.facts |= facts

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        pass


class StopAt(Launcher):
    def __init__(self, num_steps: int) -> None:
        self.num_left = num_steps

    def is_stopping(self) -> bool:
        self.num_left -= 1
        return self.num_left == 0


def main(job_file: Path, out_file: Path) -> None:
    torch.set_num_threads(1)
    config, model, store, snapshot_id, run, stop_at = pickle.loads(job_file.read_bytes())
    recorder = Recorder()
    with join_world("cpu") as world:
        job = TrainingJob(config, model, load_snapshot(store, snapshot_id), run, recorder)
        check_exchange(job, world)
        launcher = StopAt(stop_at) if world.rank == world.size - 1 else None
        try:
            history = Trainer(job, world, launcher).run()
        except StoppedError:
            history = []
        if world.is_main:
            out = {"world_size": world.size, "steps": recorder.steps, "history": history, "facts": recorder.facts}
            out_file.write_text(json.dumps(out))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
