"""Convert local clips for real and compare with the sum of the parts, and measure where cuts land.

One process, CPU time, 10 s clips of 30 s FLAC and Opus files. `parts` are read + decode and cut + fbank + write, each
alone, without measuring. `measuring_share` is what measuring, fingerprint and table included, adds to a conversion
without: clips are measured and not in turn, since whole conversions differ from minute to minute by more than that. The
cut's error is the lag of the best match with the original, over 200 cuts in files of five codecs. Prints one JSON line.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any, TypeVar
from unittest.mock import patch

import av
import numpy as np
import torch
from av.audio.frame import AudioFrame
from scipy.signal import correlate
from threadpoolctl import threadpool_limits

import pipeline.convert
from bench.lines import print_line
from pipeline.audio.decode import Clip, decode_segment
from pipeline.config import FetchConfig
from pipeline.convert import Conversion, convert_shard
from pipeline.fbank import compute_fbank
from pipeline.measures.clip_measures import Measures
from pipeline.records import Media, Segment, ShardPlan
from pipeline.shards.format import ShardWriter
from pipeline.sources import FolderSource
from pipeline.store.layout import Shard
from pipeline.store.storage import Store

FILE_S, CLIP_MS, RATE_HZ, CLIP_RATE_HZ = 30, 10_000, 48_000, 16_000
CODECS = {
    "flac": ("flac", "flac"),
    "opus": ("webm", "libopus"),
    "aac": ("m4a", "aac"),
    "pcm": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
}
NUM_CLIPS = 200
NUM_ROUNDS = 3
NUM_MEASURING_ROUNDS = 20
UNMEASURED = Measures()
NUM_CUTS_PER_CODEC = 40
R = TypeVar("R")


def make_sound(seed: int) -> np.ndarray:
    """Noise below 6 kHz that never repeats (S,) at 48 kHz."""
    noise = np.fft.rfft(np.random.default_rng(seed).standard_normal(FILE_S * RATE_HZ))
    noise[np.fft.rfftfreq(FILE_S * RATE_HZ, 1 / RATE_HZ) > 6_000] = 0
    sound = np.fft.irfft(noise)
    return (0.2 * sound / sound.std()).clip(-1, 1).astype(np.float32)


def encode(sound: np.ndarray, path: Path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE_HZ, layout="mono")
        frame = AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
        resampler = av.AudioResampler(
            stream.codec_context.format, "mono", RATE_HZ, stream.codec_context.frame_size or 0
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def measure_cuts(folder: Path) -> dict[str, float]:
    """Largest error in ms per codec."""
    random = np.random.default_rng(1)
    worst = {}
    for codec, (extension, encoder) in CODECS.items():
        sound = make_sound(7)
        path = folder / f"cut.{extension}"
        encode(sound, path, encoder)
        original = sound[:: RATE_HZ // CLIP_RATE_HZ]  # nothing above 8 kHz, so nothing folds
        worst[codec] = 0.0
        for start_ms in random.integers(0, (FILE_S - 11) * 1000, NUM_CUTS_PER_CODEC):
            clip = decode_segment(Media(path, codec), int(start_ms), int(start_ms) + 1000)
            assert isinstance(clip, Clip), clip
            margin = CLIP_RATE_HZ // 10
            first = int(start_ms) * CLIP_RATE_HZ // 1000 - margin
            around = np.pad(original, (margin, margin))[first + margin : first + margin + CLIP_RATE_HZ + 2 * margin]
            lag = int(np.argmax(correlate(around, clip.waveform, mode="valid", method="fft"))) - margin
            worst[codec] = max(worst[codec], abs(lag) / CLIP_RATE_HZ * 1000)
    return worst


def timed(function: Callable[[], R]) -> tuple[float, R]:
    """Return the CPU seconds of all threads, which other work on the machine changes little."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def measure_parts(segments: list[Segment], source: FolderSource, folder: Path) -> dict[str, float]:
    """Seconds of each part alone over all segments."""
    seconds = {}
    seconds["read"], media = timed(lambda: [source.fetch(segment) for segment in segments])
    assert all(isinstance(each, Media) for each in media)

    def decode() -> list[np.ndarray]:
        clips = [decode_segment(m, s.start_ms, s.end_ms) for m, s in zip(media, segments, strict=True)]  # pyright: ignore
        return [clip.waveform for clip in clips if isinstance(clip, Clip)]

    seconds["decode_and_cut"], waveforms = timed(decode)
    assert len(waveforms) == len(segments)
    seconds["fbank"], fbanks = timed(lambda: [compute_fbank(torch.from_numpy(each)).numpy() for each in waveforms])

    def write() -> None:
        store = Store(str(folder / "alone"))
        with store.scratch() as scratch:
            writer = ShardWriter(scratch / "shard.tar")
            for segment, fbank_TM in zip(segments, fbanks, strict=True):
                writer.write(segment, fbank_TM.astype(np.float16), None, segment.key)
            writer.close()
            store.publish(scratch / "shard.tar", "shards/x.tar")

    seconds["write"], _ = timed(write)
    return seconds


@contextmanager
def without_measuring() -> Iterator[None]:
    """Leave out all that measures clips. Only a benchmark does: no setting leaves it out."""
    with ExitStack() as stack:
        for name, stand_in in (
            ("pipeline.audio.levels.Levels.add", lambda *given: None),
            ("pipeline.measures.measure.measure_clip", lambda *given: UNMEASURED),
            ("pipeline.convert.write_measures", lambda *given: None),
        ):
            stack.enter_context(patch(name, stand_in))
        yield


def convert_all(segments: list[Segment], source: FolderSource, folder: Path) -> float:
    """Return the CPU seconds of a conversion."""
    plan = ShardPlan(Shard("eval", "bench"), tuple(segments), (0,) * len(segments))
    conversion = Conversion(Store(str(folder)), source, FetchConfig(), keep_audio=False)
    seconds, report = timed(lambda: convert_shard(plan, conversion))
    assert getattr(report, "num_written", 0) == len(segments), report
    return seconds


def measure_measuring(segments: list[Segment], source: FolderSource, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds a clip of measuring, and of a conversion without.

    Each clip is converted as often with as without, and the medians over the rounds are compared.
    """
    convert, write = pipeline.convert.convert_clip, pipeline.convert.write_measures
    seconds = np.zeros((NUM_MEASURING_ROUNDS, len(segments)))
    is_measured = (np.arange(len(segments)) // 2 + np.arange(NUM_MEASURING_ROUNDS)[:, None]) % 2 == 0  # of both codecs
    order = iter(np.ndindex(seconds.shape))
    writing_s = []

    def convert_timed(*given: Any) -> Any:
        place = next(order)
        with nullcontext() if is_measured[place] else without_measuring():
            seconds[place], result = timed(lambda: convert(*given))
        return result

    def write_timed(*given: Any) -> None:
        writing_s.append(timed(lambda: write(*given))[0])

    with patch("pipeline.convert.convert_clip", convert_timed):
        for number in range(NUM_MEASURING_ROUNDS):
            convert_all(segments, source, folder / f"in_turn{number}")
    with_s, without_s = (
        np.nanmedian(np.where(of_these, seconds, np.nan), axis=0).mean() for of_these in (is_measured, ~is_measured)
    )
    with patch("pipeline.convert.write_measures", write_timed):
        all_s = [convert_all(segments, source, folder / f"measured{number}") for number in range(NUM_ROUNDS)]
    measuring_s = float(with_s - without_s) + median(writing_s) / len(segments)
    return measuring_s, median(all_s) / len(segments) - measuring_s


def main() -> None:
    torch.set_num_threads(1)  # as Ray and `run_tasks` do, in turn
    threadpool_limits(1, user_api="blas")
    folder = Path(tempfile.mkdtemp(prefix="bench-convert-"))
    media = folder / "media"
    media.mkdir()
    segments = []
    for number in range(NUM_CLIPS):
        extension, encoder = CODECS["flac" if number % 2 else "opus"]
        path = media / f"{number:011d}.{extension}"
        if number < 8:
            encode(make_sound(number), path, encoder)
        else:
            path.hardlink_to(media / f"{number % 8:011d}.{extension}")
        segments.append(
            Segment(f"{number:011d}", 1000 * (number % 20), 1000 * (number % 20) + CLIP_MS, ("/m/1",), "eval")
        )
    source = FolderSource(str(media), FetchConfig())
    all_parts, wholes = [], []
    for number in range(NUM_ROUNDS):  # in turn, so that a slow moment of the machine meets all
        wholes.append(convert_all(segments, source, folder / f"whole{number}"))
        with without_measuring():
            all_parts.append(measure_parts(segments, source, folder / f"parts{number}"))
    parts = min(all_parts, key=lambda each: sum(each.values()))
    alone_s, whole_s = sum(parts.values()), min(wholes)
    rest = {f"{name}_ms": 1000 * seconds / NUM_CLIPS for name, seconds in parts.items()}
    measuring_s, without_s = measure_measuring(segments, source, folder)
    rest |= {"measuring_ms": 1000 * measuring_s, "measuring_share": measuring_s / without_s}
    rest |= {f"cut_error_ms_{codec}": error for codec, error in measure_cuts(folder).items()}
    peer = "sum of its parts alone", NUM_CLIPS / alone_s
    print_line("convert", "clips per core and second", NUM_CLIPS / whole_s, peer, **rest)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
