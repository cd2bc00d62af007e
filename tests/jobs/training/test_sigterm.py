"""SIGTERM to all processes of a training, as batch systems send it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ast_model.checkpoints.checkpoint import newest_checkpoint
from pipeline.errors import StoppedError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

ROOT = Path(__file__).parents[3]
FLAGS = (
    "--train.num-epochs 1000 --train.draws-per-epoch 200 --train.global-batch-size 4 --train.micro-batch-size 4"
    " --train.allow-empty-classes --train.checkpoints.every-minutes None --workers 1 --no-use-gpu"
)


@pytest.mark.process
@pytest.mark.ray
def test_sigterm_to_the_process_group_saves_the_current_step(snapshot: Snapshot, tmp_path: Path) -> None:
    for name in ("shards", "snapshots", "latest.json"):
        (tmp_path / name).symlink_to(snapshot.store.path(name))
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment = {**inherited, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "jobs/train.py", "demo", "--root", str(tmp_path), *FLAGS.split()]
    log = tmp_path / "log"
    with log.open("w") as out:
        driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out, process_group=0)
    while "samples left" not in log.read_text():
        assert driver.poll() is None, log.read_text()
        time.sleep(0.1)
    processes = psutil.Process(driver.pid).children(recursive=True)
    os.killpg(driver.pid, signal.SIGTERM)
    assert driver.wait(60) == StoppedError.exit_code, log.read_text()
    assert psutil.wait_procs(processes, timeout=20)[1] == []

    text = log.read_text()
    found = re.search(r"run (\S+) is saved at epoch (\d+), step (\d+); resume with --resume \1", text)
    assert found and f"to resume it after an interruption: python jobs/train.py demo --root {tmp_path}" in text
    checkpoint = newest_checkpoint(Store(str(tmp_path)), f"runs/{found[1]}/checkpoints")
    assert checkpoint is not None
    assert (checkpoint.loop.epoch + 1, checkpoint.loop.step) == (int(found[2]), int(found[3]))
    assert "Traceback" not in text
