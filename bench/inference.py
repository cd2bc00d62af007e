"""Measure the service under load: 32 clients against one, a small model on Ray Serve on two cores.

python -m bench.inference

Weights are random: they cost the same. Prints a JSON line for the throughput, and one for the 99th percentile of time.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import requests
import torch

from ast_model.config import ASTConfig
from ast_model.export import export_hugging_face
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from bench.lines import print_line
from jobs.config import ServeConfig
from jobs.launch.serve import running
from pipeline.audio.decode import encode_flac
from pipeline.cluster import ray_session
from pipeline.fbank import SAMPLE_RATE_HZ

NUM_CLASSES, CLIP_S = 527, 10
NUM_CLIENTS, NUM_REQUESTS = 32, 64
PORT = 8765


def make_model(folder: Path, config: ASTConfig) -> Path:
    torch.manual_seed(0)
    labels = tuple(f"class {number}" for number in range(config.num_classes))
    export_hugging_face(AST(config), ModelMetadata(labels, -4.27, 4.57), folder / "model")
    return folder / "model"


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, int(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


def seconds_of(function: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def measure_service(folder: Path) -> None:
    model, sound = make_model(folder, ASTConfig.tiny(num_classes=NUM_CLASSES)), encode_flac(noise(CLIP_S))
    with ray_session(2), running(ServeConfig(str(model), port=PORT), "") as address:

        def ask(_: int) -> float:
            def post() -> None:
                requests.post(f"{address}/v1/tag", data=sound, timeout=300).raise_for_status()

            return seconds_of(post)

        def throughput(num_clients: int, num_requests: int) -> tuple[float, float]:
            with ThreadPoolExecutor(num_clients) as threads:
                latencies_s: list[float] = []
                total_s = seconds_of(lambda: latencies_s.extend(threads.map(ask, range(num_requests))))
            return num_requests / total_s, float(np.percentile(latencies_s, 99))

        throughput(NUM_CLIENTS, NUM_CLIENTS)
        one, one_p99_s = throughput(1, NUM_REQUESTS // 4)
        many, many_p99_s = throughput(NUM_CLIENTS, NUM_REQUESTS)
        print_line(f"service, {NUM_CLIENTS} clients", "requests per second", many, ("one client", one))
        print_line(f"service, {NUM_CLIENTS} clients, p99", "seconds", many_p99_s, ("one client", one_p99_s))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        measure_service(Path(folder))
