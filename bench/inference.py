"""Measure the use of a model: files and latency beside transformers' pipeline, memory, the service, and Ray's workers.

python -m bench.inference
python -m bench.inference --figures files latency --size small --num-files 500

The weights are random, but the same for both: they cost the same. transformers decodes with the program ffmpeg, which
must be there. Rounds of ours and of the peer take turns, and medians are printed, a JSON line for each figure.
"""

import argparse
import io
import multiprocessing
import os
import tempfile
import time
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import requests
import torch
from av.audio.stream import AudioStream

from ast_model.config import ASTConfig
from ast_model.export import export_hugging_face
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.streams import Tagged, tag_recordings
from bench.lines import peak_mb, print_line
from jobs.service.serve import running
from jobs.service.settings import ServeConfig
from jobs.tagging.parallel import tag_in_groups
from jobs.tagging.settings import PredictConfig
from pipeline.audio.decode import encode_flac
from pipeline.cluster.session import ray_session
from pipeline.fbank_settings import SAMPLE_RATE_HZ
from pipeline.sources.listing import MediaFile, list_media_files

NUM_CLASSES, CLIP_S = 527, 10
NUM_CLIENTS, NUM_REQUESTS = 32, 64
NUM_ROUNDS, NUM_LATENCIES = 3, 10
NUM_WORKERS = 2
PORT = 8765
FORMATS = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "opus": "libopus", "aac": "aac"}
"""Codec of each. No MP4: transformers hands files to ffmpeg through a pipe, in which it can't be sought."""
SIZES = {"tiny": ASTConfig.tiny, "small": ASTConfig.small, "base": ASTConfig.base}
NANO = ASTConfig(NUM_CLASSES, num_frames=128, width=96, depth=4, num_heads=3)
"""For what costs little beside the model: files of a second, by the thousand."""


def make_model(folder: Path, config: ASTConfig) -> Path:
    torch.manual_seed(0)
    labels = tuple(f"class {number}" for number in range(config.num_classes))
    export_hugging_face(AST(config), ModelMetadata(labels, -4.27, 4.57), folder / "model")
    return folder / "model"


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, int(seconds * SAMPLE_RATE_HZ)).astype(np.float32)


def encode(extension: str, seed: int) -> bytes:
    """Encode stereo noise of 10 s at 48 kHz, as recorders and phones write it."""
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, (2, CLIP_S * 48_000)).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", format={"aac": "adts", "opus": "ogg"}.get(extension, extension)) as container:
        stream = container.add_stream(FORMATS[extension], rate=48_000, layout="stereo")
        assert isinstance(stream, AudioStream)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def seconds_of(function: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


def take_turns(ours: Callable[[], object], peer: Callable[[], object], num_rounds: int) -> tuple[float, float]:
    """Return median seconds of both, measured in turn, since other work on the machine comes and goes."""
    times = [(seconds_of(ours), seconds_of(peer)) for _ in range(num_rounds)]
    return median(first for first, _ in times), median(second for _, second in times)


def open_pipeline(model: Path):
    import transformers  # only here: it takes seconds

    pipeline: Any = transformers.pipeline("audio-classification", model=str(model), device="cpu")
    return pipeline


def measure_files(folder: Path, args: argparse.Namespace) -> None:
    model = make_model(folder, SIZES[args.size](num_classes=NUM_CLASSES))
    for number in range(args.num_files):
        extension = list(FORMATS)[number % len(FORMATS)]
        (folder / f"{number:04d}.{extension}").write_bytes(encode(extension, number % 12))
    files = sorted(path for path in folder.iterdir() if path.suffix[1:] in FORMATS)
    tagger, peer = Tagger.load(model, device="cpu"), open_pipeline(model)
    recordings = [MediaFile(str(file), str(file)) for file in files]

    def ours() -> None:
        assert all(isinstance(result, Tagged) for result in tag_recordings(tagger.scorer, recordings, TaggingOptions()))

    ours_s, peer_s = take_turns(ours, lambda: peer([str(file) for file in files], top_k=5), NUM_ROUNDS)
    about = f"{len(files)} files of 10 s in {len(FORMATS)} formats, {args.size}"
    print_line(about, "clips per second", len(files) / ours_s, ("transformers", len(files) / peer_s))


def measure_latency(folder: Path, args: argparse.Namespace) -> None:
    model, file = make_model(folder, SIZES[args.size](num_classes=NUM_CLASSES)), folder / "sound.flac"
    file.write_bytes(encode("flac", 0))
    tagger, peer = Tagger.load(model, device="cpu"), open_pipeline(model)
    np.testing.assert_allclose(tagger.tag(file, 1)[0][1], peer(str(file), top_k=1)[0]["score"], atol=0.02)
    ours_s, peer_s = take_turns(lambda: tagger.tag(file), lambda: peer(str(file)), NUM_LATENCIES)
    print_line(f"one file of 10 s, warm, {args.size}", "seconds", ours_s, ("transformers", peer_s))


def measure_memory(folder: Path, args: argparse.Namespace) -> None:
    """Measure the peak memory of an hour above that of ten seconds, each in a process of its own."""
    model = make_model(folder, SIZES[args.size](num_classes=NUM_CLASSES))
    peaks_mb = []
    for seconds in (CLIP_S, 3600):
        with wave.open(str(folder / f"{seconds}.wav"), "wb") as out:
            out.setparams((2, 2, 44_100, 0, "NONE", ""))
            content = np.random.default_rng(0).integers(-9_000, 9_000, (44_100 * CLIP_S, 2)).astype("<i2").tobytes()
            for _ in range(seconds // CLIP_S):
                out.writeframes(content)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks_mb.append(pool.apply(_peak_mb, (model, folder / f"{seconds}.wav")))
    print_line(f"an hour, hop 5 s, {args.size}, above ten seconds", "MB", peaks_mb[1] - peaks_mb[0])


def _peak_mb(model: Path, file: Path) -> float:
    tagger = Tagger.load(model, device="cpu")
    list(tag_recordings(tagger.scorer, [MediaFile(str(file), str(file))], TaggingOptions(timeline=True, hop_s=5)))
    return peak_mb()


def measure_workers(folder: Path, args: argparse.Namespace) -> None:
    """Measure Ray's workers on a core each against one process on one core. Starting Ray is not counted.

    One process left alone would read and decode on the second core, and so use one and a half.
    """
    model, sounds = make_model(folder, NANO), folder / "sounds"
    sounds.mkdir()
    for number in range(args.num_short_files):
        (sounds / f"{number:05d}.flac").write_bytes(encode_flac(noise(1, number % 100)))
    recordings = list(list_media_files([str(sounds)]))
    tagger = Tagger.load(model, device="cpu")
    outputs = iter(range(100))

    def parallel(some: Sequence[MediaFile] = recordings) -> None:
        output = str(folder / f"tags-{next(outputs)}")
        config = PredictConfig(str(model), (str(sounds),), format="parquet", output=output, device="cpu")
        tag_in_groups(some, config)

    def alone() -> None:
        cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, {min(cores)})
        torch.set_num_threads(1)
        list(tag_recordings(tagger.scorer, recordings, TaggingOptions()))
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)

    with ray_session(NUM_WORKERS):
        parallel(recordings[:400])  # starts the workers
        ours_s, alone_s = take_turns(parallel, alone, NUM_ROUNDS)
    about = f"{len(recordings)} files of 1 s, {NUM_WORKERS} Ray workers, nano"
    peer = ("one process, one core", len(recordings) / alone_s)
    print_line(about, "files per second", len(recordings) / ours_s, peer)


def measure_service(folder: Path, args: argparse.Namespace) -> None:
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


MEASUREMENTS = {
    "files": measure_files,
    "latency": measure_latency,
    "memory": measure_memory,
    "workers": measure_workers,
    "service": measure_service,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--num-files", type=int, default=500)
    parser.add_argument("--num-short-files", type=int, default=20_000)
    args = parser.parse_args()
    for name in args.figures:
        with tempfile.TemporaryDirectory() as folder:
            MEASUREMENTS[name](Path(folder), args)


if __name__ == "__main__":
    main()
