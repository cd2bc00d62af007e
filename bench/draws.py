"""Measure the draw plan for AudioSet's 2.08 million training clips, and a start in the middle of an epoch.

Prints one JSON line per figure, with seconds and memory: from a snapshot on disk to the draws of (epoch 3, step
100,000), and one epoch's plan per sampler and grouped by shard. The balanced plan is compared with torch's
WeightedRandomSampler, which draws neither partners nor λ.
"""

import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import WeightedRandomSampler

from ast_model.config import AugmentConfig, CacheConfig, Sampler
from ast_model.data.loader import BatchReader, open_reader
from ast_model.data.sampling import Draws, group_by_shard, num_steps_of, plan_epoch, rank_slice
from bench.lines import print_line
from pipeline.labels import Labels
from pipeline.shards.checksum import Checksum
from pipeline.shards.format import shard_settings
from pipeline.snapshots.snapshot import INDEX_SCHEMA, Snapshot, load_snapshot, publish_snapshot
from pipeline.store.storage import Store
from pipeline.weights import class_balanced_weights

NUM_CLIPS, NUM_CLASSES, CLIPS_PER_SHARD = 2_063_949, 527, 1000
GLOBAL_BATCH_SIZE = 12
EPOCH, STEP = 3, 100_000
SAMPLERS: dict[Sampler, int] = {"balanced": NUM_CLIPS, "uniform": NUM_CLIPS, "without_replacement": 100_000}
WINDOW = 200_000


def make_snapshot(store: Store) -> None:
    """Publish an index of AudioSet's size and class imbalance, without shards."""
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, NUM_CLASSES + 1)
    flat = random.choice(NUM_CLASSES, 2 * NUM_CLIPS, p=frequency / frequency.sum()).astype(np.int16)
    ends = np.arange(0, 2 * NUM_CLIPS + 1, 2, dtype=np.int32)
    shard = np.arange(NUM_CLIPS) // CLIPS_PER_SHARD
    names = [f"shards/unbalanced_train/{number:016x}.tar" for number in range(shard[-1] + 1)]
    offset = np.arange(NUM_CLIPS) % CLIPS_PER_SHARD * 257_536 + 512
    columns = {
        "key": pa.array([f"{number:011}_30000" for number in range(NUM_CLIPS)]),
        "split": pa.DictionaryArray.from_arrays(pa.array(np.zeros(NUM_CLIPS, np.int16)), ["unbalanced_train"]),
        "shard": pa.DictionaryArray.from_arrays(pa.array(shard.astype(np.int32)), names),
        "offset": offset,
        "length": np.full(NUM_CLIPS, 255_616),
        "num_frames": np.full(NUM_CLIPS, 998),
        "audio_offset": np.zeros(NUM_CLIPS, np.int64),
        "audio_length": np.zeros(NUM_CLIPS, np.int64),
        "labels": pa.ListArray.from_arrays(pa.array(ends), pa.array(flat)),
    }
    labels = Labels(tuple(f"/m/{n}" for n in range(NUM_CLASSES)), tuple(f"Class {n}" for n in range(NUM_CLASSES)))
    stats = {"fbank_mean": -4.27, "fbank_std": 4.57}
    manifest = {"fingerprint": "bench", "settings": shard_settings(keep_audio=False), "split_counts": {}}
    checksums = {name: Checksum(257_536_000, f"{number:064x}") for number, name in enumerate(names)}
    index = pa.table(columns).cast(INDEX_SCHEMA)
    publish_snapshot(Snapshot(store, "", index, labels, stats, manifest, checksums), made_of="bench")


def measure(name: str, function: Callable[[], object], peer: tuple[str, float] | None = None, **rest: Any) -> float:
    """Measure and print seconds and the additional peak memory of NumPy and Python. Returns the seconds."""
    tracemalloc.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    function()
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    print_line(f"draws/{name}", "s", seconds, peer, cpu_s=cpu_s, peak_mb=round(peak_mb), **rest)
    return seconds


def start_in_the_middle(store: Store) -> None:
    """Perform the steps of a restarted training up to its next batch."""
    snapshot = load_snapshot(store)
    rows = snapshot.rows_of(("unbalanced_train",))
    targets = snapshot.targets(rows)
    weights = class_balanced_weights(targets)
    BatchReader(open_reader(snapshot, CacheConfig()), rows, targets, 1024)
    draws = plan_epoch(weights, len(rows), "balanced", AugmentConfig(), (snapshot.snapshot_id, 0, EPOCH))
    assert num_steps_of(len(draws), GLOBAL_BATCH_SIZE) > STEP
    assert len(draws[rank_slice(STEP, GLOBAL_BATCH_SIZE, 0, 1)]) == GLOBAL_BATCH_SIZE


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        make_snapshot(store)
        measure("start", lambda: start_in_the_middle(store), epoch=EPOCH, step=STEP, num_clips=NUM_CLIPS)
        snapshot = load_snapshot(store)
    weights = class_balanced_weights(snapshot.targets(snapshot.rows_of(("unbalanced_train",))))
    shards = snapshot.index["shard"].combine_chunks().indices.to_numpy()
    seed = (snapshot.snapshot_id, 0, EPOCH)

    def plan(sampler: Sampler) -> Draws:
        return plan_epoch(weights, SAMPLERS[sampler], sampler, AugmentConfig(), seed)

    peer_s = measure("torch", lambda: list(WeightedRandomSampler(weights.tolist(), NUM_CLIPS)))
    measure("balanced", lambda: plan("balanced"), ("torch's WeightedRandomSampler", peer_s))
    measure("uniform", lambda: plan("uniform"))
    measure("without_replacement", lambda: plan("without_replacement"), num_draws=SAMPLERS["without_replacement"])
    draws = plan("balanced")
    measure("grouped_by_shard", lambda: group_by_shard(draws, shards, WINDOW, seed), window=WINDOW)


if __name__ == "__main__":
    main()
