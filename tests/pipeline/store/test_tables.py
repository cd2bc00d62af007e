import subprocess
import sys

import pytest

from pipeline.store.storage import Store

COUNT_NEW_THREADS = """
import sys
import time
from pathlib import Path

from pipeline.measures.table import read_measures
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.storage import Store


def threads():
    return {task.name for task in Path("/proc/self/task").iterdir() if "jemalloc" not in (task / "comm").read_text()}


before = threads()
snapshot = load_snapshot(Store(sys.argv[1]))
measures = read_measures(snapshot)
deadline_s = time.monotonic() + 5
while threads() - before and time.monotonic() < deadline_s:  # joined threads may take a moment to disappear
    time.sleep(0.01)
print(len(measures["silence"].drop_null()), len(threads() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads of libraries are listed in /proc")
def test_reading_a_snapshot_and_its_measures_leaves_no_thread(small_store: Store) -> None:
    """A thread of Arrow that releases memory while the interpreter exits aborts the process."""
    command = [sys.executable, "-c", COUNT_NEW_THREADS, small_store.root]
    num_measured, num_threads = subprocess.check_output(command, text=True).split()
    assert int(num_measured) > 0
    assert int(num_threads) == 0
