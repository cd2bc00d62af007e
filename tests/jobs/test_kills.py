"""Kill runs at random moments while a server counts their requests. Part of `make rehearsal`."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.audio.decode import encode_flac
from pipeline.shards.format import read_sidecar
from pipeline.shards.verify import verify_shard
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.layout import Shard
from pipeline.store.storage import Store
from tests.mirror import Handler, Mirror

pytestmark = pytest.mark.rehearsal
ROOT = Path(__file__).parents[2]
NUM_CLIPS = 1000
PER_KILL = 2 * 16
"""Clips that two workers may fetch again after a kill."""


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    noise = 0.1 * np.random.default_rng(0).standard_normal(160_000)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_address[1]}"
    Handler.mirror = Mirror(address, encode_flac(noise.astype(np.float32)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Handler.mirror
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(mirror: Mirror, tmp_path: Path) -> Callable[[str], subprocess.Popen]:
    """Return a function that starts a run with a root."""
    (tmp_path / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/a,"A"\n')
    rows = [f'v{number:010d}, 0.000, 10.000, "/m/a"\n' for number in range(NUM_CLIPS)]
    (tmp_path / "eval_segments.csv").write_text("".join(rows))
    data = ["--metadata", str(tmp_path), "--media", mirror.address + "/{ytid}", "--splits", "eval"]
    command = [sys.executable, "jobs/preprocess.py", "run", *data, "--clips-per-shard", "40", "--no-track", "--root"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return lambda root: subprocess.Popen([*command, root], cwd=ROOT, env=env)


def wait_for(is_time: Callable[[], bool], run: subprocess.Popen) -> None:
    while not is_time():
        assert run.poll() is None, "the run ended too early"
        time.sleep(0.005)


def asked_for_more(mirror: Mirror, num_clips: int) -> Callable[[], bool]:
    goal = mirror.num_requests.total() + num_clips
    return lambda: mirror.num_requests.total() > goal


def workers_of(run: subprocess.Popen) -> list[psutil.Process]:
    found = psutil.Process(run.pid).children(recursive=True)
    return [process for process in found if process.is_running() and "ray::convert" in " ".join(process.cmdline())]


def digests_in(store: Store) -> list[tuple[str, str]]:
    """Return the keys and digests of all sidecar rows."""
    names = store.list("shards", ".parquet")
    return sorted((row["key"], row["digest"]) for name in names for row in read_sidecar(store, name).to_pylist())


def test_kills_of_drivers_and_workers_do_not_change_the_store(
    start: Callable[[str], subprocess.Popen], mirror: Mirror, tmp_path: Path
) -> None:
    quiet, store = Store(str(tmp_path / "quiet")), Store(str(tmp_path / "disturbed"))
    assert start(quiet.root).wait() == 0
    mirror.num_requests.clear()
    chance, num_kills = random.Random(), 0
    for moment in ("asking", "asking", "sealing"):
        run = start(store.root)
        wait_for(asked_for_more(mirror, chance.randrange(1, NUM_CLIPS // 5)), run)
        if moment == "sealing":
            wait_for(lambda: len(store.list("shards", ".tar")) > len(store.list("shards", ".parquet")), run)
        run.send_signal(signal.SIGKILL)
        run.wait()
        num_kills += 1
    run = start(store.root)
    for _ in range(3):
        wait_for(asked_for_more(mirror, chance.randrange(1, NUM_CLIPS // 10)), run)
        chance.choice(workers_of(run)).kill()
        num_kills += 1
    wait_for(lambda: store.list("snapshots") != [], run)
    run.send_signal(signal.SIGKILL)  # most likely between a snapshot's first file and its manifest
    run.wait()
    assert start(store.root).wait() == 0

    assert mirror.num_requests.total() - NUM_CLIPS <= PER_KILL * num_kills
    snapshot, expected = load_snapshot(store), load_snapshot(quiet)
    assert snapshot.index["key"] == expected.index["key"], "every clip once"
    assert snapshot.manifest["split_counts"] == {"eval": {"planned": NUM_CLIPS, "written": NUM_CLIPS, "failed": {}}}
    sidecars = store.list("shards", ".parquet")
    assert [message for name in sidecars for message in verify_shard(Shard.of(name), store)] == []
    assert digests_in(store) == digests_in(quiet)
    both = set(store.list("shards", ".tar")) & set(quiet.list("shards", ".tar"))
    assert all(store.read_bytes(name) == quiet.read_bytes(name) for name in both)
    assert store.list("parts") == []
    assert list(store.scratch_home.iterdir()) == []
