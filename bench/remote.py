"""Measure the loader over S3 with a cold cache; the peer sends plain range requests for whole shards.

Both read each clip of a split once, with the same number of connections. The loader fetches, verifies and stores shards
and yields batches (B, 1024, 128) of float16. The peer discards the bytes, or only stores them, the minimum for any
cache. Prints one JSON line per pair, the best of five rounds. The server (moto, a separate process on this machine)
takes most of the time, so the results show the loader's overhead, not the speed of S3.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import torch

from ast_model.config import AugmentConfig, CacheConfig
from ast_model.data.loader import BatchReader, open_reader
from ast_model.data.sampling import group_by_shard, plan_epoch
from bench.lines import print_line
from bench.stores import make_store
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

PORT = 5123
NUM_SHARDS, CLIPS_PER_SHARD = 40, 50
NUM_CONNECTIONS = 4
NUM_FRAMES, BATCH_SIZE = 1024, 48
NUM_ROUNDS = 5


@contextmanager
def serve_s3() -> Iterator[Store]:
    """Run an S3 server; yield an empty store on it."""
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(settings)
    command = [sys.executable, "-m", "moto.server", "-p", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        boto3.client("s3").create_bucket(Bucket="bench")
        yield Store("s3://bench/store")
    finally:
        server.terminate()
        server.wait()


def read_plainly(snapshot: Snapshot, keep_in: Path | None = None) -> int:
    """Read whole shards by range requests, and store them if `keep_in` is given; return the number of clips."""

    def read(item: tuple[str, int]) -> int:
        content = snapshot.store.read_range(item[0], 0, item[1])
        if keep_in:
            file = keep_in / Path(item[0]).name
            with file.open("wb") as stream:
                stream.write(content)
                os.fsync(stream.fileno())
        return len(content)

    with ThreadPoolExecutor(NUM_CONNECTIONS) as pool:
        num_bytes = sum(pool.map(read, [(name, checksum.num_bytes) for name, checksum in snapshot.checksums.items()]))
    assert num_bytes == sum(checksum.num_bytes for checksum in snapshot.checksums.values())
    return snapshot.index.num_rows


def read_through_cold_cache(snapshot: Snapshot, folder: Path, is_grouped: bool) -> int:
    reader = open_reader(snapshot, CacheConfig(str(folder), max_gb=10, num_threads=NUM_CONNECTIONS))
    rows = snapshot.rows_of(("balanced_train",))
    collator = BatchReader(reader, rows, snapshot.targets(rows), NUM_FRAMES)
    seed = (snapshot.snapshot_id, 0, 0)
    draws = plan_epoch(np.ones(len(rows)), len(rows), "uniform", AugmentConfig(mixup_probability=0), seed)
    if is_grouped:
        draws = group_by_shard(draws, reader.shards_of(rows), len(draws), seed)
    collator.set_order(draws, is_grouped)
    batches = (draws[start : start + BATCH_SIZE] for start in range(0, len(draws), BATCH_SIZE))
    return sum(len(batch.clips) for batch in collator.prefetch(batches, num_threads=1))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, serve_s3() as store:
        local = make_store(Store(f"{folder}/local"), NUM_SHARDS, CLIPS_PER_SHARD).store
        for name in local.list(""):
            store.write_bytes(name, local.read_bytes(name))
        snapshot = load_snapshot(store)
        cache = Path(folder) / "cache"
        contenders: dict[str, Callable[[], int]] = {
            "plain_ranges": lambda: read_plainly(snapshot),
            "plain_ranges_kept": lambda: read_plainly(snapshot, keep_in=cache),
            "cold_cache_grouped": lambda: read_through_cold_cache(snapshot, cache, is_grouped=True),
            "cold_cache_random": lambda: read_through_cold_cache(snapshot, cache, is_grouped=False),
        }
        best = dict.fromkeys(contenders, 0.0)
        for _ in range(NUM_ROUNDS):
            for name, read in contenders.items():
                shutil.rmtree(cache, ignore_errors=True)
                cache.mkdir()
                start = time.perf_counter()
                best[name] = max(best[name], read() / (time.perf_counter() - start))
    for peer in ("plain_ranges", "plain_ranges_kept"):
        for own in ("cold_cache_grouped", "cold_cache_random"):
            print_line(own, "samples per second", best[own], (peer, best[peer]), clips=NUM_SHARDS * CLIPS_PER_SHARD)


if __name__ == "__main__":
    main()
