"""Compare the front end with its peers on one core: fbank, fbank with pad and normalisation, decoding.

Prints one JSON line for each: clips of 10 s per second of processor time, medians of rounds that take turns.
Processor time counts child processes too. Decoding's peer is the program `ffmpeg`.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from torchaudio.compliance import kaldi
from transformers import ASTFeatureExtractor

from bench.lines import print_line
from pipeline.audio.decode import Clip, decode_segment
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import NUM_MEL_BINS, SAMPLE_RATE_HZ
from pipeline.records import Media

NUM_ROUNDS = 40
NUM_ROUNDS_DECODING = 12
FILE_S, START_S, CLIP_S = 60, 30, 10
MAX_FRAMES, MEAN, STD = 1024, -4.2677393, 4.5689974


def compare(name: str, own: Callable[[], object], peer_name: str, peer: Callable[[], object], rounds: int) -> None:
    """Time both in turns and print their line."""
    own_s, peer_s = [], []
    for _ in range(rounds):
        for function, seconds in ((own, own_s), (peer, peer_s)):
            # The first call pays for the caches that the other one evicted.
            function()
            start = processor_s()
            function()
            seconds.append(processor_s() - start)
    print_line(name, "clips per processor second", 1 / median(own_s), (peer_name, 1 / median(peer_s)))


def processor_s() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def torchaudio_fbank(waveform: torch.Tensor) -> torch.Tensor:
    """AST's own call."""
    return kaldi.fbank(
        waveform[None],
        htk_compat=True,
        sample_frequency=SAMPLE_RATE_HZ,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )


def normalised_fbank(waveform: np.ndarray) -> np.ndarray:
    """(S,) → (1, MAX_FRAMES, 128), as AST takes it."""
    fbank = compute_fbank(torch.from_numpy(waveform))
    padded = torch.full((1, MAX_FRAMES, NUM_MEL_BINS), -MEAN / (2 * STD))
    torch.sub(fbank, MEAN, out=padded[0, : len(fbank)]).div_(2 * STD)
    return padded.numpy()


def bench_fbank() -> None:
    waveform = torch.randn(CLIP_S * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) * 0.1
    compare("fbank", lambda: compute_fbank(waveform), "torchaudio", lambda: torchaudio_fbank(waveform), NUM_ROUNDS)
    extractor, samples = ASTFeatureExtractor(), waveform.numpy()

    def extract() -> np.ndarray:
        return extractor(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_values"]

    np.testing.assert_allclose(normalised_fbank(samples), extract(), rtol=0, atol=1e-5)
    own = "fbank, pad, normalise"
    compare(own, lambda: normalised_fbank(samples), "ASTFeatureExtractor", extract, NUM_ROUNDS)


def write_media(path: Path, codec: str, rate: int) -> None:
    """Write a minute of stereo noise, louder and softer by turns."""
    random = np.random.default_rng(0)
    swell = 0.1 + 0.1 * np.sin(np.arange(FILE_S * rate) / rate)
    samples = (random.normal(size=(2, FILE_S * rate)) * swell * 0.5).clip(-1, 1).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="stereo")
        frame = AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        converter = av.AudioResampler(stream.format, "stereo", rate, stream.frame_size)
        for part in [*converter.resample(frame), *converter.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def decode(path: Path) -> np.ndarray:
    clip = decode_segment(Media(path, "bench"), START_S * 1000, (START_S + CLIP_S) * 1000)
    assert isinstance(clip, Clip), clip
    return clip.waveform


def decode_with_ffmpeg(path: Path) -> np.ndarray:
    command = f"ffmpeg -nostdin -v error -threads 1 -ss {START_S} -t {CLIP_S} -i {path}"
    command += f" -threads 1 -ac 1 -ar {SAMPLE_RATE_HZ} -f f32le -"
    output = subprocess.run(command.split(), check=True, capture_output=True).stdout
    return np.frombuffer(output, np.float32)[: CLIP_S * SAMPLE_RATE_HZ]


def bench_decoding(folder: Path) -> None:
    for codec, suffix, rate in (("libopus", "webm", 48_000), ("flac", "flac", 44_100)):
        path = folder / f"media.{suffix}"
        write_media(path, codec, rate)
        peer = "ffmpeg", lambda p=path: decode_with_ffmpeg(p)
        compare(f"decode, cut, resample {suffix}", lambda p=path: decode(p), *peer, NUM_ROUNDS_DECODING)


def main() -> None:
    if shutil.which("ffmpeg") is None:
        sys.exit("the program ffmpeg is a peer of this benchmark; install it, for example by `apt install ffmpeg`")
    torch.set_num_threads(1)
    # On one core, with whatever either side starts.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    bench_fbank()
    with tempfile.TemporaryDirectory() as folder:
        bench_decoding(Path(folder))


if __name__ == "__main__":
    main()
