"""Compare the loader with a plain webdataset pipeline and with bare reads, with a warm page cache and one thread.

All produce or read the same clips. Batches are (B, 1024, 128) float16 with multi-hot targets. Prints one JSON line per
comparison: samples per second of processor time, best of five rounds. --root reads an existing store; by default a
temporary store is created.
"""

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from webdataset import filters, tariterators
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import SimpleShardList

from ast_model.config import AugmentConfig, Sampler
from ast_model.data.loader import BatchReader
from ast_model.data.sampling import plan_epoch
from bench.lines import print_line
from bench.stores import make_store
from pipeline.ahead import map_ahead
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.reading.reader import ClipReader
from pipeline.shards.format import FBANK_DTYPE
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store
from pipeline.weights import class_balanced_weights

NUM_FRAMES = 1024
BATCH_SIZE = 48
NUM_ROUNDS = 5
NUM_SHARDS, CLIPS_PER_SHARD = 4, 500


def own_batches(snapshot: Snapshot, mixup_probability: float, sampler: Sampler) -> Iterator[int]:
    """Yield the number of clips read for each batch, including partners."""
    rows = snapshot.rows_of(("balanced_train",))
    collator = BatchReader(ClipReader(snapshot), rows, snapshot.targets(rows), NUM_FRAMES)
    weights = class_balanced_weights(snapshot.targets(rows))
    augment = AugmentConfig(mixup_probability=mixup_probability)
    draws = plan_epoch(weights, len(rows), sampler, augment, (snapshot.snapshot_id, 0, 0))
    works = (draws[start : start + BATCH_SIZE] for start in range(0, len(draws), BATCH_SIZE))
    for batch in map_ahead(collator.read_draws, works, num_threads=1):
        yield len(batch.clips) + len(batch.partners)


def webdataset_batches(snapshot: Snapshot) -> Iterator[int]:
    """Build the same batches with webdataset: decode the .npy and .json members, pad and batch, in shard order."""
    shards = [snapshot.store.path(name) for name in sorted(snapshot.checksums)]
    index_of = snapshot.labels.index_of

    def decode(sample: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray]:
        fbank_TM = np.zeros((NUM_FRAMES, NUM_MEL_BINS), FBANK_DTYPE)
        clip_TM = np.load(io.BytesIO(sample["fbank.npy"]))[:NUM_FRAMES]
        fbank_TM[: len(clip_TM)] = clip_TM
        target_C = np.zeros(len(snapshot.labels), np.float32)
        target_C[[index_of[mid] for mid in json.loads(sample["json"])["labels"]]] = 1
        return fbank_TM, target_C

    def collate(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
        fbanks, targets = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(fbanks)), torch.from_numpy(np.stack(targets))

    stages = (
        SimpleShardList(shards),
        tariterators.tarfile_to_samples(),
        filters.map(decode),
        filters.batched(BATCH_SIZE, collation_fn=collate),
    )
    for fbank_BTM, _ in DataPipeline(*stages):
        yield len(fbank_BTM)


def bare_reads(snapshot: Snapshot) -> Iterator[int]:
    """Read the same members in random order and view them as arrays."""
    index = snapshot.index
    names = index["shard"].combine_chunks()
    files = [os.open(snapshot.store.path(name), os.O_RDONLY) for name in names.dictionary.to_pylist()]
    members = list(
        zip(names.indices.to_pylist(), index["offset"].to_pylist(), index["length"].to_pylist(), strict=True)
    )
    for place in np.random.default_rng(0).permutation(len(members)):
        shard, offset, length = members[place]
        np.frombuffer(os.pread(files[shard], length, offset), FBANK_DTYPE, offset=128).reshape(-1, NUM_MEL_BINS)
        yield 1
    for file in files:
        os.close(file)


def samples_per_s(read: Callable[[], Iterator[int]]) -> float:
    start = time.process_time(), time.perf_counter()
    num_samples = sum(read())
    return num_samples / (time.process_time() - start[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="store with a split balanced_train; default: a temporary store")
    root = parser.parse_args().root
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(root or folder)
        if not root:
            make_store(store, NUM_SHARDS, CLIPS_PER_SHARD)
        snapshot = load_snapshot(store)
        ways: dict[str, Callable[[], Iterator[int]]] = {
            "loader": lambda: own_batches(snapshot, 0.0, "uniform"),
            "loader_with_mixup": lambda: own_batches(snapshot, 0.5, "balanced"),
            "webdataset": lambda: webdataset_batches(snapshot),
            "pread": lambda: bare_reads(snapshot),
        }
        best = dict.fromkeys(ways, 0.0)
        for _ in range(NUM_ROUNDS):
            for name, way in ways.items():
                best[name] = max(best[name], samples_per_s(way))
    for own, peer in (("loader", "webdataset"), ("loader_with_mixup", "webdataset"), ("loader", "pread")):
        line = (own, "samples per processor second", best[own], (peer, best[peer]))
        print_line(*line, batch_size=BATCH_SIZE, clips=snapshot.index.num_rows)


if __name__ == "__main__":
    main()
