"""What tracking costs: a start, and a line of metrics while training.

python -m bench.tracking
"""

import shutil
import tempfile
import time
from pathlib import Path

from ast_model import tracking_delivery
from ast_model.tracking import start_run
from pipeline.storage import Store

NUM_LINES = 2000
LINE = {f"train/metric_{n}": 0.5 for n in range(8)}


def main() -> None:
    folder = tempfile.mkdtemp()
    tracking_delivery.OUTBOXES = Path(folder) / "outboxes"
    store = Store(folder)
    started = time.perf_counter()
    start_run(store, "the first", {}).end("FINISHED")
    print(f"start with a new database       {time.perf_counter() - started:6.2f} s")
    started = time.perf_counter()
    run = start_run(store, "another", {})
    print(f"start with one that is there    {time.perf_counter() - started:6.2f} s")
    started, cpu = time.perf_counter(), time.thread_time()
    for step in range(NUM_LINES):
        run.log_metrics(LINE, step)
    elapsed_s, cpu_s = time.perf_counter() - started, time.thread_time() - cpu
    print(f"a line of {len(LINE)} metrics, loop waits {1e6 * elapsed_s / NUM_LINES:6.0f} µs")
    print(f"  processor time of the loop    {1e6 * cpu_s / NUM_LINES:6.0f} µs")
    started, cpu = time.perf_counter(), time.process_time()
    run.end("FINISHED")
    print(f"  delivered beside it, all      {1e6 * (time.process_time() - cpu) / NUM_LINES:6.0f} µs of processor time")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
