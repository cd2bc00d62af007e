"""Search ever more made-up fingerprints for near-identical clips: the time of a core that each takes must not grow.

    python -m bench.duplicates_growth --clips 2000000 20000000 --processes 16 --folder /tmp/growth

The steps of the search run as they are, in a pool of processes instead of Ray's tasks, and fingerprints are made where
others are read from a store: so this needs neither Ray nor 20 GB for a store, and 3.2 kB a clip in the folder.
Its peer is the search of the first number of clips.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.sparse import csgraph
from threadpoolctl import threadpool_limits

from bench.lines import peak_mb, print_line
from pipeline.labels import Labels
from pipeline.measures.fingerprint import NUM_BANDS, NUM_STEPS
from pipeline.quality.duplicates import pairs
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

COPY_SHARE = 0.05
"""Of the clips, copies and those that they are copies of."""
CROWD_SHARE = 0.005
"""Of the clips, copies of one clip, half of them identical to it."""
MAX_COPY_SHIFT, MAX_COPY_NOISE, CROWD_NOISE = 12, 0.8, 0.3
"""Of copies, in steps, and as shares of a clip's deviation."""
WINDOW_STEPS = 4
LIMIT = 127.5 / np.sqrt(3) * np.sqrt(WINDOW_STEPS) / 2
"""Half the deviation of `make_fields`."""
CHUNK_CLIPS = 128
"""At a time, which stay in a processor's cache."""
SHARD_CLIPS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path("data/duplicates-growth"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    peer = None
    for num_clips in arguments.clips:
        with TemporaryDirectory(dir=arguments.folder) as folder:
            us, figures = search(num_clips, arguments.processes, Path(folder))
        print_line(f"search of {num_clips} fingerprints, time of a core for each", "us", us, peer, **figures)
        peer = peer or (f"search of {num_clips}", us)


def search(num_clips: int, num_processes: int, folder: Path) -> tuple[float, dict[str, Any]]:
    """Search made-up clips, and return the microseconds that each took, and other figures."""
    numbers = np.arange(num_clips)
    shards = pa.array((numbers // SHARD_CLIPS).astype(np.int32))
    names = pa.array([f"{shard:06}" for shard in range(-(-num_clips // SHARD_CLIPS))])
    index = pa.table(
        {
            "key": pa.array(numbers).cast(pa.string()),
            "shard": pa.chunked_array([pa.DictionaryArray.from_arrays(shards, names)]),
        }
    )
    snapshot = Snapshot(Store(str(folder)), "made", index, Labels((), ()), {}, {}, {})
    steps: dict[str, float] = {}

    def run(
        function: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any, num_items: int
    ) -> Iterator[tuple[Any, Any]]:
        started, seconds = time.perf_counter(), 0.0
        with multiprocessing.get_context("fork").Pool(num_processes, threadpool_limits, (1,)) as pool:
            for item, result, task_s in pool.imap_unordered(measure, ((function, item, shared) for item in items)):
                seconds += task_s
                yield item, result
        steps[function.__name__] = round(seconds / num_clips * 1e6, 1)
        print(json.dumps({"step": function.__name__, "s": round(time.perf_counter() - started, 1)}), flush=True)

    started, driver_started = time.perf_counter(), time.process_time()
    with mock.patch.object(pairs, "read_measures", make_measures):
        found, _ = pairs.find_pairs(snapshot, folder, run)
    driver_us = (time.process_time() - driver_started) / num_clips * 1e6
    seconds = time.perf_counter() - started
    memory_mb = peak_mb()
    first, second = (found[name].cast(pa.int64()).to_numpy() for name in ("first", "second"))
    edges = sparse.coo_array((np.ones(len(first), bool), (first, second)), shape=(num_clips, num_clips))
    group = csgraph.connected_components(edges, directed=False)[1]
    parts = [(start, min(pairs.PART_CLIPS, num_clips - start)) for start in range(0, num_clips, pairs.PART_CLIPS)]
    origin = np.concatenate([start + origins(size) for start, size in parts])
    crowd = np.concatenate([start + crowd_of(size) for start, size in parts])
    origin[crowd] = crowd[0]
    is_copy = origin != numbers
    is_copy[crowd] = False
    scratch_gb = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
    return sum(steps.values()) + driver_us, {
        "steps_us": steps,
        "driver_us": driver_us,
        "driver_peak_mb": memory_mb,
        "s": seconds,
        "scratch_gb": scratch_gb,
        "recall": float((group[is_copy] == group[origin[is_copy]]).mean()),
        "precision": float((origin[first] == origin[second]).mean()),
        "pairs": len(found),
        "crowd_in_one_group": float(np.bincount(group[crowd]).max() / len(crowd)),
    }


def measure(task: tuple[Callable[[Any, Any], Any], Any, Any]) -> tuple[Any, Any, float]:
    """Run a task, and return its item, its result and its processor time in seconds."""
    function, item, shared = task
    started = time.process_time()
    result = function(item, shared)
    return item, result, time.process_time() - started


def make_measures(clips: Snapshot, columns: list[str]) -> dict[str, pa.Array]:
    """Make the fingerprints of a part's clips, in the place of `read_measures`."""
    words = make_words(int(clips.index["key"][0].as_py()), len(clips.index))
    ends = np.arange(len(words) + 1, dtype=np.int32) * NUM_STEPS * 4
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(words)]
    return {column: pa.Array.from_buffers(pa.binary(), len(words), buffers) for column in columns}


def count_copies(num_clips: int) -> int:
    return round(COPY_SHARE * num_clips / 2)


def origins(num_clips: int) -> np.ndarray:
    """Return which clip of a part each is, or is a copy of (N,)."""
    origin, num_copies = np.arange(num_clips), count_copies(num_clips)
    origin[num_copies : 2 * num_copies] = origin[:num_copies]
    return origin


def crowd_of(num_clips: int) -> np.ndarray:
    """Return which clips of a part are the crowd: its last."""
    return np.arange(num_clips - max(2, round(CROWD_SHARE * num_clips)), num_clips)


def make_words(seed: int, num_clips: int) -> np.ndarray:
    """Return fingerprints of clips (N, NUM_STEPS), some of which are copies of others."""
    rng = np.random.default_rng(seed)
    words = np.empty((num_clips, NUM_STEPS), np.uint32)
    num_copies, crowd = count_copies(num_clips), crowd_of(num_clips)
    for start in range(2 * num_copies, num_clips, CHUNK_CLIPS):
        words[start : start + CHUNK_CLIPS] = pack(make_fields(rng, len(words[start : start + CHUNK_CLIPS])))
    for start in range(0, num_copies, CHUNK_CLIPS):
        fields = make_fields(rng, min(CHUNK_CLIPS, num_copies - start))
        shifts = rng.integers(-MAX_COPY_SHIFT, MAX_COPY_SHIFT + 1, len(fields))
        shifted = (np.arange(NUM_STEPS) - shifts[:, None]) % NUM_STEPS
        copies = np.take_along_axis(fields, shifted[:, :, None], axis=1)
        noise = rng.uniform(0, MAX_COPY_NOISE, (len(fields), 1, 1)) * make_fields(rng, len(fields))
        words[start : start + len(fields)] = pack(fields)
        words[num_copies + start :][: len(fields)] = pack(copies + noise)
    member = make_fields(np.random.default_rng(2**32), 1)
    words[crowd] = pack(member)
    for start in range(0, len(crowd), 2 * CHUNK_CLIPS):
        noisy = crowd[start : start + 2 * CHUNK_CLIPS : 2]
        words[noisy] = pack(member + CROWD_NOISE * make_fields(rng, len(noisy)))
    return words


def make_fields(rng: np.random.Generator, num_clips: int) -> np.ndarray:
    """Return noise (num_clips, NUM_STEPS, NUM_BANDS), as smooth as the windows of a fingerprint make it.

    Sums of bytes instead of normal values, which would take longer to make than to search.
    """
    size = num_clips, NUM_STEPS + WINDOW_STEPS - 1, NUM_BANDS
    noise = np.frombuffer(rng.bytes(int(np.prod(size))), np.int8).reshape(size)
    fields = noise[:, :NUM_STEPS].astype(np.int16)
    for step in range(1, WINDOW_STEPS):
        fields += noise[:, step : step + NUM_STEPS]
    return fields


def pack(fields: np.ndarray) -> np.ndarray:
    """Return the words (N, NUM_STEPS) of fields."""
    above, below = (
        np.packbits(each.reshape(len(fields), -1), axis=1).view("<u2") for each in (fields > LIMIT, fields < -LIMIT)
    )
    return above | below.astype(np.uint32) << np.uint32(NUM_BANDS)


if __name__ == "__main__":
    main()
