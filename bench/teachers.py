"""Measure time and memory of importing a teacher of AudioSet's size, and of reading it in a training rank.

python -m bench.teachers --folder data/bench-teachers        needs 7 GB there

Creates a snapshot of artificial clips and a pair of files in EfficientAT's format for 70 % of them, imports the pair
with jobs/teachers.py, and reads the targets of batches of 12 clips with mixup partners. Each part runs in a separate
process, to measure its peak memory. Prints a JSON line per part; reads are compared with reads without a teacher.
"""

import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro

from ast_model.config import AUDIOSET_MEAN, AUDIOSET_STD, CacheConfig
from ast_model.data.loader import BatchReader, open_reader
from ast_model.teachers.store import Teachers
from ast_model.training.data import DistillationBatchReader
from bench.lines import peak_mb, print_line
from pipeline.labels import Labels
from pipeline.shards.format import shard_settings
from pipeline.snapshots.snapshot import INDEX_SCHEMA, Snapshot, load_snapshot, multi_hot, publish_snapshot
from pipeline.store.storage import Store

NUM_CLASSES = 527
BATCH = 12
STEP_MS = 1000 * BATCH / 505
"""Estimated step time of AST-base on an H200 at 40 % of its peak: 505 samples per second."""
BLOCK = 10_000
IMPORT = """
import re, sys
from jobs.teachers import COMMAND_LINE
assert COMMAND_LINE.main(["import", *sys.argv[1:]]) == 0
print(re.findall(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[0])
"""
"""Code that runs the command and prints its peak memory in kilobytes."""


def make_store(root: str, num_clips: int) -> None:
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, NUM_CLASSES + 1)
    first = random.choice(NUM_CLASSES, num_clips, p=frequency / frequency.sum())
    second = (first + random.integers(1, NUM_CLASSES, num_clips)) % NUM_CLASSES
    labels = pa.ListArray.from_arrays(
        pa.array(np.arange(0, 2 * num_clips + 1, 2), pa.int32()),
        pa.array(np.stack([first, second], axis=1).ravel(), pa.int16()),
    )
    keys = pa.array([f"{number:011x}_{number % 600}000" for number in range(num_clips)])
    columns = {
        "key": keys,
        "split": pa.array(["unbalanced_train"] * num_clips),
        "shard": pa.array(["unbalanced_train/0"] * num_clips),
        "labels": labels,
    }
    for name in ("offset", "length", "num_frames", "audio_offset", "audio_length"):
        columns[name] = pa.array(np.zeros(num_clips, np.int64))
    index = pa.table([columns[field.name].cast(field.type) for field in INDEX_SCHEMA], schema=INDEX_SCHEMA)
    mids = tuple(f"/m/{number:06x}" for number in range(NUM_CLASSES))
    stats = {
        "fbank_mean": AUDIOSET_MEAN,
        "fbank_std": AUDIOSET_STD,
        "class_counts": {"unbalanced_train": np.bincount(first, minlength=NUM_CLASSES).tolist()},
    }
    manifest = {"fingerprint": "bench", "settings": shard_settings(keep_audio=False), "split_counts": {}}
    publish_snapshot(Snapshot(Store(root), "", index, Labels(mids, mids), stats, manifest, {}), "made")


def write_pair(root: str, folder: Path) -> None:
    """Write float32 logits for 70 % of the clips, and the pickled index."""
    snapshot = load_snapshot(Store(root))
    rows = np.flatnonzero(np.random.default_rng(1).random(len(snapshot.index)) < 0.7)
    targets = snapshot.targets(rows)
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), NUM_CLASSES)}
    noise = np.random.default_rng(2).normal(-4, 1, (BLOCK, NUM_CLASSES)).astype(np.float32)
    with (folder / "scores.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), BLOCK):
            hot = targets[start : start + BLOCK].toarray().astype(np.float32)
            file.write((noise[: len(hot)] + 6 * hot).tobytes())
    keys = snapshot.index["key"].take(pa.array(rows)).to_pylist()
    index = {f"Y{key.rpartition('_')[0]}": row for row, key in enumerate(keys)}
    (folder / "index.pkl").write_bytes(pickle.dumps(index))


def import_pair(root: str, folder: Path) -> tuple[float, float]:
    """Run the command in a new process. Return its seconds and its peak megabytes."""
    flags = f"--root {root} --name made --scores {folder}/scores.npy --index {folder}/index.pkl --stated-map 0.9"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", IMPORT, *flags.split()], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    print(done.stdout, end="")
    return seconds, int(done.stdout.split()[-1]) / 1024


def read_targets(root: str, with_teacher: bool, num_steps: int) -> tuple[float, float]:
    """Return the milliseconds per step for reading targets, and the peak megabytes."""
    snapshot = load_snapshot(Store(root))
    rows = snapshot.rows_of(("unbalanced_train",))
    labels = snapshot.index["labels"].combine_chunks().take(pa.array(rows))
    clips = BatchReader(open_reader(snapshot, CacheConfig()), rows, multi_hot(labels, NUM_CLASSES), num_frames=1024)
    if with_teacher:
        teachers = Teachers(snapshot, rows, ["made"]).open(CacheConfig())
        clips = DistillationBatchReader(clips, teachers, share=0.9)
    draws = np.random.default_rng(3).integers(len(rows), size=(num_steps, 2, BATCH))
    start = time.perf_counter()
    for clip, partner in draws:
        clips._targets(clip)
        clips._targets(partner)
    return 1000 * (time.perf_counter() - start) / num_steps, peak_mb()


def main(folder: Path = Path("data/bench-teachers"), num_clips: int = 2_064_000, num_steps: int = 20_000) -> None:
    """Run all measurements. `folder` is created, and removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    root = str(folder.absolute() / "store")

    def run_in_process(function, *arguments):
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(function, *arguments).result()

    run_in_process(make_store, root, num_clips)
    run_in_process(write_pair, root, folder.absolute())
    seconds, imported_mb = run_in_process(import_pair, root, folder.absolute())
    print_line("import", "s", seconds, clips=num_clips, peak_mb=imported_mb)
    rounds = [[run_in_process(read_targets, root, each, num_steps) for each in (True, False)] for _ in range(3)]
    (taught_ms, taught_mb), (plain_ms, plain_mb) = np.median(np.array(rounds), axis=0)
    print_line("targets of a step", "ms", taught_ms, ("without a teacher", plain_ms), of_step=taught_ms / STEP_MS)
    print_line("a rank's peak", "MB", taught_mb, ("without a teacher", plain_mb), more_mb=taught_mb - plain_mb)
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
