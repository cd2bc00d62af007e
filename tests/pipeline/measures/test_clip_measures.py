"""Measures of clips with known defects, compared with FFmpeg's filters `astats`, `ebur128` and `silencedetect`."""

import io
from fractions import Fraction
from itertools import groupby, pairwise

import av
import numpy as np
import pytest
import torch
from av.audio.frame import AudioFrame
from av.filter import Graph

from pipeline.audio.decode import Clip, decode_segment, encode_flac
from pipeline.fbank import compute_fbank
from pipeline.measures.clip_measures import Measures
from pipeline.measures.measure import MIN_LUFS, MIN_RMS_DB, measure_clip, measure_stored
from pipeline.records import Media
from tests.pipeline.audio.encoding import encode, tone

RATE_HZ = 16_000


def filtered(samples: np.ndarray, rate_hz: int, *filters: tuple[str, str]) -> list[dict[str, str]]:
    """Filter (C, S) floats with FFmpeg; return the metadata of each output frame."""
    samples = np.atleast_2d(samples).astype(np.float32)
    graph, layout = Graph(), "mono" if len(samples) == 1 else "stereo"
    time_base = Fraction(1, rate_hz)
    source = graph.add_abuffer(sample_rate=rate_hz, format="fltp", layout=layout, time_base=time_base)
    nodes = [source, *(graph.add(name, options) for name, options in filters), graph.add("abuffersink")]
    for first, second in pairwise(nodes):
        first.link_to(second)
    graph.configure()
    frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, time_base
    source.push(frame)
    source.push(None)
    found = []
    while True:
        try:
            found.append(dict(nodes[-1].pull().metadata))
        except EOFError:
            return found


def fbank_of(waveform: np.ndarray) -> np.ndarray:
    return compute_fbank(torch.from_numpy(waveform)).numpy().astype(np.float16)


def measure(content: bytes, start_ms: int = 0, end_ms: int = 10_000) -> Measures:
    clip = decode_segment(Media(content, "test"), start_ms, end_ms)
    assert isinstance(clip, Clip), clip
    return measure_clip(clip.waveform, fbank_of(clip.waveform), clip.media)


def sounds(rate_hz: int = RATE_HZ, seconds: float = 10, seed: int = 0) -> np.ndarray:
    """Bursts of coloured noise (S,) in [-1, 1] with pauses and levels up to 40 dB apart."""
    random = np.random.default_rng(seed)
    num_samples = round(rate_hz * seconds)
    spectrum = np.fft.rfft(random.standard_normal(num_samples))
    spectrum /= np.maximum(np.fft.rfftfreq(num_samples, 1 / rate_hz), 100) ** 0.7
    levels = 10 ** (random.uniform(-2, 0, 40) * (random.random(40) < 0.8))
    sound = np.fft.irfft(spectrum, num_samples) * np.repeat(levels, num_samples // 40)
    return 0.5 * sound / np.abs(sound).max()


@pytest.mark.parametrize("codec", [("wav", "pcm_s16le"), ("wav", "pcm_f32le"), ("flac", "flac"), ("wav", "pcm_s24le")])
def test_peak_and_dc_equal_astats(codec: tuple[str, str]) -> None:
    media = np.stack([sounds(44_100, 12) - 0.05, 0.3 * sounds(44_100, 12, seed=1) - 0.02])
    measures = measure(encode(media, 44_100, *codec), 1000, 11_000)
    expected = filtered(media[:, 44_100 : 11 * 44_100], 44_100, ("astats", "metadata=1:reset=0"))[-1]
    assert measures.peak is not None
    assert 20 * np.log10(measures.peak) == pytest.approx(float(expected["lavfi.astats.Overall.Peak_level"]), abs=0.01)
    dc = [float(expected[f"lavfi.astats.{channel}.DC_offset"]) for channel in (1, 2)]
    assert measures.dc == pytest.approx(np.mean(dc), abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_rms_and_loudness_equal_ffmpeg(seed: int) -> None:
    waveform = sounds(seed=seed).astype(np.float32)
    waveform -= waveform.mean()
    fbank_TM = fbank_of(waveform)
    measures = measure_clip(waveform, fbank_TM)
    (stats,) = filtered(waveform, RATE_HZ, ("astats", "metadata=1"))
    assert measures.rms_db == pytest.approx(float(stats["lavfi.astats.Overall.RMS_level"]), abs=0.01)
    # EBU R128 defines its filters at 48 kHz.
    loudness = filtered(waveform, RATE_HZ, ("aresample", "48000:filter_size=256"), ("ebur128", "metadata=1"))
    assert measures.loudness_lufs == pytest.approx(float(loudness[-1]["lavfi.r128.I"]), abs=0.1)
    # Stored audio gives the same measures, an fbank nearly the same.
    kept, estimated = measure_stored(fbank_TM, encode_flac(waveform)), measure_stored(fbank_TM, b"")
    assert kept.loudness_lufs == pytest.approx(measures.loudness_lufs, abs=0.01)
    assert estimated.loudness_lufs == pytest.approx(measures.loudness_lufs, abs=0.5)
    assert estimated.rms_db == pytest.approx(measures.rms_db, abs=0.5)
    assert (kept.silence, kept.bandwidth_hz) == (measures.silence, measures.bandwidth_hz)
    assert (estimated.silence, estimated.bandwidth_hz) == (measures.silence, measures.bandwidth_hz)
    assert estimated.peak is estimated.codec is kept.media_start_s is None


def test_silence_equals_silencedetect() -> None:
    media = sounds(48_000) + np.random.default_rng(0).normal(0, 1e-3, 480_000)
    media[100_000:220_000] = 0
    media[300_000:390_000] = np.random.default_rng(1).normal(0, 1e-5, 90_000).round(5)  # dither
    found = filtered(media, 48_000, ("asetnsamples", "480"), ("silencedetect", "noise=-85dB:d=0.1"))
    expected = sum(float(each.get("lavfi.silence_duration", 0)) for each in found)
    assert expected == pytest.approx(210_000 / 48_000, abs=0.01)
    for codec in (("wav", "pcm_s16le"), ("wav", "pcm_f32le")):
        assert measure(encode(media, 48_000, *codec)).silence == pytest.approx(expected / 10, abs=0.005)


@pytest.mark.parametrize("codec", [("wav", "pcm_s16le"), ("webm", "libopus"), ("wav", "pcm_mulaw")])
def test_silent_clips_have_the_lowest_levels(codec: tuple[str, str]) -> None:
    measures = measure(encode(np.zeros(480_000), 48_000, *codec))
    assert (measures.rms_db, measures.loudness_lufs) == (MIN_RMS_DB, MIN_LUFS)
    assert (measures.silence, measures.bandwidth_hz, measures.clipping) == (1, None, 0)
    assert measures.peak == pytest.approx(0, abs=1e-6)


def count_clipped(samples: np.ndarray) -> int:
    """Count the samples in runs of two or more at ±1."""
    runs = [(at_end, len(list(run))) for at_end, run in groupby(np.abs(samples) >= 1)]
    return sum(length for at_end, length in runs if at_end and length > 1)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_f64le", "pcm_u8", "pcm_mulaw"])
def test_clipping_counts_exact_samples(codec: str) -> None:
    clipped = np.stack([(6 * sounds(48_000, 12)).clip(-1, 1), 0.3 * sounds(48_000, 12)])
    expected = count_clipped(clipped[0, 48_000 : 11 * 48_000]) / (2 * 480_000)
    assert expected > 0.01
    # With eight bits, samples close to full scale count as well.
    tolerance = 0.15 if codec in ("pcm_u8", "pcm_mulaw") else 0.01
    measures = measure(encode(clipped, 48_000, "wav", codec), 1000, 11_000)
    assert measures.clipping == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("codec", [("webm", "libopus"), ("ipod", "aac"), ("mp3", "libmp3lame")])
def test_clipping_is_detected_after_lossy_coding(codec: tuple[str, str]) -> None:
    clipped = (6 * sounds(48_000)).clip(-1, 1)
    measures = measure(encode(clipped, 48_000, *codec))
    assert measures.clipping and measures.peak
    assert 0.25 < measures.clipping / (count_clipped(clipped) / len(clipped)) < 1
    assert measures.peak > 1.2


@pytest.mark.parametrize("level", [1.0, 0.8])
def test_loud_sounds_are_not_clipped(level: float) -> None:
    loud = np.concatenate([tone(440, 48_000, 5, level), 2 * level * sounds(48_000, 5)])
    assert measure(encode(loud, 48_000)).clipping == 0


@pytest.mark.parametrize(
    ("rate_hz", "container", "codec", "expected"),
    [
        (48_000, "wav", "pcm_s16le", 8000),
        (48_000, "webm", "libopus", 8000),
        (8_000, "wav", "pcm_mulaw", 4000),
        (11_025, "wav", "pcm_s16le", 5512),
    ],
)
def test_bandwidth_is_the_end_of_the_spectrum(rate_hz: int, container: str, codec: str, expected: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * rate_hz)
    measures = measure(encode(noise, rate_hz, container, codec))
    assert measures.bandwidth_hz == pytest.approx(expected, rel=0.06)
    assert measures.rate_hz == rate_hz


@pytest.mark.slow
@pytest.mark.parametrize(
    ("container", "codec", "name", "channels"),
    [("webm", "libopus", "opus", 2), ("mp3", "libmp3lame", "mp3", 1), ("ipod", "aac", "aac", 2)],
)
def test_properties_of_the_media_are_measured(container: str, codec: str, name: str, channels: int) -> None:
    content = encode(np.stack([sounds(48_000, 15)] * channels), 48_000, container, codec)
    measures = measure(content, 2000, 12_000)
    assert (measures.codec, measures.channels, measures.rate_hz) == (name, channels, 48_000)
    assert measures.bit_rate == pytest.approx(8 * len(content) / 15, rel=0.1)
    assert measures.media_length_s == pytest.approx(15, abs=0.1)
    assert measures.media_start_s == 2


def test_bit_rate_of_minus_one_is_replaced_by_the_file_average() -> None:
    content = encode(np.stack([sounds(48_000)] * 2), 48_000, "ogg", "vorbis")
    nominal = content.index(b"\x01vorbis") + 20
    first_page = content[:22] + bytes(4) + content[26:nominal] + b"\xff" * 4 + content[nominal + 4 : 58]
    content = first_page[:22] + ogg_checksum(first_page).to_bytes(4, "little") + first_page[26:] + content[58:]
    with av.open(io.BytesIO(content)) as media:
        assert media.streams.audio[0].bit_rate == 2**32 - 1
    assert measure(content).bit_rate == pytest.approx(8 * len(content) / 10, rel=0.01)


def ogg_checksum(page: bytes) -> int:
    """CRC-32 with the polynomial 0x04c11db7, without bit reversal."""
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = checksum << 1 ^ (0x104C11DB7 if checksum >> 31 else 0)
    return checksum


def test_media_that_end_early_state_their_length() -> None:
    content = encode(sounds(48_000, 7), 48_000, "flac", "flac")
    measures = measure(content, 3000, 13_000)
    assert (measures.media_length_s, measures.media_start_s) == (7, 3)
    assert measures.rms_db and measures.rms_db > -60


def test_audio_outside_the_segment_is_not_measured() -> None:
    media = 0.1 * sounds(48_000, 12)
    media[[40, 47_990, 480_010 + 48_000]] = 0.9
    measures = measure(encode(media, 48_000), 1000, 11_000)
    assert measures.peak == pytest.approx(np.abs(media[48_000 : 11 * 48_000]).max(), abs=1e-4)
