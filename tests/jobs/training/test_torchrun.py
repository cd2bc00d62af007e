import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ast_model.checkpoints.checkpoint import list_checkpoints
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

ROOT = Path(__file__).parents[3]
FLAGS = """demo --train.num-epochs 100 --train.draws-per-epoch 160 --train.train-splits balanced_train
    --train.allow-empty-classes --train.average-last-epochs 0 --model.num-frames 256""".split()


@pytest.mark.rehearsal
def test_sigterm_saves_a_checkpoint_and_exits_with_75(small_store: Store, snapshot: Snapshot, tmp_path: Path) -> None:
    for name in ("shards", "snapshots", "latest.json"):
        (tmp_path / name).symlink_to(small_store.path(name))
    launcher = [sys.executable, "-m", "jobs.training.torchrun", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*launcher, "jobs/train.py", *FLAGS, "--root", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    store = Store(str(tmp_path))
    while not store.list("runs", "/checkpoint.json"):
        assert process.poll() is None, "it ended before its time"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    (record,) = store.list("runs", "/run.json")
    run = record.split("/")[1]
    assert f"resume with --resume {run}" in errors
    assert snapshot.snapshot_id == store.read_json(record)["snapshot"]
    assert list_checkpoints(store, f"runs/{run}/checkpoints")
