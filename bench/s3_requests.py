"""Count the S3 requests of each preprocessing phase, and extrapolate their price to AudioSet's size.

    python -m bench.s3_requests

Converts the miniature on Ray into a store on an S3 service in this process, with three combinations of clips and
shards. The counts give the requests per run, per shard and per clip; three runs determine them exactly, so the fit has
no error estimate. Prints one JSON line per phase: requests by kind for AudioSet's 2,084,320 segments in
2,085 shards, their list price, and the price of ten times as many. No peer.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import requests
from moto.server import ThreadedMotoServer
from werkzeug.serving import WSGIRequestHandler

from bench.lines import print_line
from pipeline.cluster.session import ray_session
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.miniature import make_miniature, serve_miniature
from pipeline.preprocess import preprocess
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.snapshots.verify import verify_sizes
from pipeline.store.storage import Store

NUM_SEGMENTS, NUM_SHARDS = 2_084_320, 2_085
RUNS = ((96, 32, 16), (192, 64, 16), (192, 64, 64))
"""Numbers of training clips, evaluation clips and clips per shard."""
DOLLARS = {"PUT": 5e-6, "LIST": 5e-6, "GET": 4e-7, "HEAD": 4e-7, "DELETE": 0.0}
"""List price per request in us-east-1."""


class RequestCounter:
    """Counts a server's requests by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def count(self, handler: WSGIRequestHandler) -> None:
        kind = {"POST": "PUT"}.get(handler.command, handler.command)
        self.counts["LIST" if kind == "GET" and "list-type" in handler.path else kind] += 1

    def count_during(self, function: Callable[[], object]) -> Counter[str]:
        """Call `function` and return the counts of its requests."""
        self.counts.clear()
        function()
        return Counter(self.counts)


@contextmanager
def serve_s3() -> Iterator[RequestCounter]:
    """Run an S3 service that counts its requests; configure this process and its children for it."""
    found = RequestCounter()
    WSGIRequestHandler.log_request = lambda self, code="-", size="-": found.count(self)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield found
    finally:
        server.stop()


@dataclass(frozen=True)
class PhaseCounts:
    """Size of a run and its requests by phase."""

    num_clips: int
    num_shards: int
    phases: dict[str, Counter[str]]


def measure(num_train: int, num_eval: int, clips_per_shard: int, counted: RequestCounter) -> PhaseCounts:
    requests.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset", timeout=10).raise_for_status()
    boto3.client("s3").create_bucket(Bucket="bench")
    with tempfile.TemporaryDirectory() as folder:
        miniature = make_miniature(Path(folder), num_train=num_train, num_eval=num_eval)
        with serve_miniature(miniature.folder) as server:
            config = PreprocessConfig(
                metadata=str(miniature.metadata_folder),
                media=(server.media_address,),
                clips_per_shard=clips_per_shard,
                fetch=FetchConfig(deadline_s=2, backoff_s=0.01),
                retry=(),
            )
            store = Store(f"s3://bench/{num_train}-{clips_per_shard}")
            phases = {
                "first run": counted.count_during(lambda: preprocess(config, store)),
                "idle rerun": counted.count_during(lambda: preprocess(config, store)),
                "loading the snapshot": counted.count_during(lambda: load_snapshot(store)),
            }
            snapshot = load_snapshot(store)
            phases["sizes before a training"] = counted.count_during(lambda: verify_sizes(snapshot))
        return PhaseCounts(num_train + num_eval, len(snapshot.checksums), phases)


def main() -> None:
    with serve_s3() as counted, ray_session(num_cpus=2):
        runs = [measure(*sizes, counted) for sizes in RUNS]
    design = np.array([[1, run.num_shards, run.num_clips] for run in runs], float)
    for phase in runs[0].phases:
        shown: dict[str, Any] = {}
        dollars = {1: 0.0, 10: 0.0}
        for kind in DOLLARS:
            counts = np.array([run.phases[phase][kind] for run in runs], float)
            # Requests per run, per shard and per clip, from three runs.
            fitted = np.linalg.solve(design, counts).clip(min=0) if counts.any() else np.zeros(3)
            at_size = {times: float(fitted @ [1, times * NUM_SHARDS, times * NUM_SEGMENTS]) for times in dollars}
            for times, count in at_size.items():
                dollars[times] += DOLLARS[kind] * count
            if counts.any():
                shown[kind] = round(at_size[1])
                shown[f"{kind} per run, shard, clip"] = [round(float(each), 3) for each in fitted]
        print_line(f"{phase}, requests", "US$", dollars[1], peer=None, ten_times_as_much=round(dollars[10], 2), **shown)


if __name__ == "__main__":
    main()
