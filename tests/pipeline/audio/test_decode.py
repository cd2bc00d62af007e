import os
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.packet import Packet
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import track as tracks
from pipeline.audio.decode import Clip, DecodeError, decode_file, decode_segment, encode_flac
from pipeline.audio.length import measure_length_ms
from pipeline.errors import InputError
from pipeline.records import Failure, Media, Reason
from tests.mirror import ten_hours_of_silence
from tests.pipeline.audio.encoding import encode, tone

CODECS = {
    # name: container, codec, rate, channels, error of the cut allowed in ms
    "webm": ("webm", "libopus", 48_000, 2, 1.0),
    "m4a": ("ipod", "aac", 44_100, 2, 1.0),
    "mp3": ("mp3", "libmp3lame", 44_100, 2, 1.0),
    "mp3 of 22 kHz": ("mp3", "libmp3lame", 22_050, 1, 1.0),
    "flac": ("flac", "flac", 44_100, 1, 0.1),
    "wav": ("wav", "pcm_s16le", 8_000, 2, 0.1),
    "wav of 24 bits": ("wav", "pcm_s24le", 32_000, 1, 0.1),
    "wav of 8 bits": ("wav", "pcm_u8", 16_000, 1, 0.1),
    "wav of floats": ("wav", "pcm_f32le", 16_000, 1, 0.1),
    "opus": ("ogg", "libopus", 48_000, 1, 1.0),
    "mp3 in matroska": ("matroska", "libmp3lame", 44_100, 1, 1.0),
}
MARKER_MS, MARKER_S = 24_567, 0.05


def with_marker(rate: int, seconds: float = 30) -> np.ndarray:
    """Faint noise with a short 1 kHz sound at MARKER_MS."""
    samples = np.random.default_rng(0).normal(0, 1e-3, round(rate * seconds))
    start = round(MARKER_MS * rate / 1000)
    burst = tone(1000, rate, MARKER_S)
    samples[start : start + len(burst)] += burst
    return samples


def marker_error_ms(waveform: np.ndarray, start_ms: int) -> float:
    match = np.correlate(waveform, tone(1000, 16_000, MARKER_S), "valid")
    return (int(match.argmax()) / 16) + start_ms - MARKER_MS


def clip_of(content: bytes | Path, start_ms: int, end_ms: int, offset_ms: int = 0) -> Clip:
    clip = decode_segment(Media(content, "test", offset_ms), start_ms, end_ms)
    assert isinstance(clip, Clip), clip
    assert clip.waveform.dtype == np.float32
    assert abs(clip.waveform.mean(dtype=np.float64)) < 1e-5
    return clip


def reason_of(content: bytes | Path, start_ms: int = 10_000, end_ms: int = 20_000) -> Reason:
    failure = decode_segment(Media(content, "test"), start_ms, end_ms)
    assert isinstance(failure, Failure) and failure.detail
    return failure.reason


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_cut_is_exact(name: str) -> None:
    container, codec, rate, num_channels, allowed_ms = CODECS[name]
    content = encode(np.tile(with_marker(rate), (num_channels, 1)), rate, container, codec)
    for start_ms, end_ms in [(20_000, 30_000), (24_001, 26_000), (24_566, 24_800), (0, 30_000)]:
        clip = clip_of(content, start_ms, end_ms)
        assert len(clip.waveform) == 16 * (end_ms - start_ms)
        assert not clip.is_short
        assert abs(marker_error_ms(clip.waveform, start_ms)) <= allowed_ms


@pytest.mark.parametrize(
    # MP2's encoder delays by 481 samples, which MPEG-TS can't state.
    ("container", "codec", "start_s", "delay_ms"),
    [("matroska", "flac", 100, 0), ("mpegts", "mp2", 1000, 10)],
)
def test_times_count_from_the_start_of_the_container(container: str, codec: str, start_s: float, delay_ms: int) -> None:
    content = encode(with_marker(48_000), 48_000, container, codec, start_s)
    for start_ms in (0, 20_000):
        waveform = clip_of(content, start_ms, 29_000).waveform
        assert abs(marker_error_ms(waveform, start_ms) - delay_ms) < 1


def test_cut_file_starts_at_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    path.write_bytes(encode(with_marker(16_000)[20 * 16_000 :], 16_000, "flac", "flac"))
    clip = clip_of(path, 20_000, 30_000, offset_ms=20_000)
    assert not clip.is_short
    assert marker_error_ms(clip.waveform, 20_000) == 0
    failure = decode_segment(Media(path, "test", 20_000), 19_000, 29_000)
    assert isinstance(failure, Failure) and failure.reason is Reason.OUT_OF_RANGE


@pytest.mark.parametrize("rate", [48_000, 44_100, 32_000, 22_050, 16_000, 11_025, 8_000])
@pytest.mark.parametrize("freq_hz", [100, 3_000, 7_400])
def test_resampling_preserves_tones(rate: int, freq_hz: int) -> None:
    if freq_hz > 0.45 * rate:
        pytest.skip("not in this source")
    waveform = clip_of(encode(tone(freq_hz, rate, 3), rate), 1_000, 2_000).waveform
    expected = tone(freq_hz, 16_000, 3)[16_000:32_000]
    # Compare up to the ends, where the filter needs samples outside of the cut.
    assert np.abs(waveform - expected).max() < 0.002


def test_resampling_has_no_seams() -> None:
    waveform = clip_of(encode(tone(1_000, 48_000, 25), 48_000), 0, 25_000).waveform
    assert np.abs(waveform - tone(1_000, 16_000, 25))[100:-100].max() < 1e-3


@pytest.mark.parametrize("rate", [48_000, 44_100, 32_000, 22_050])
def test_resampling_removes_tones_above_nyquist(rate: int) -> None:
    for freq_hz in (8_100, 9_000, 10_800):
        waveform = clip_of(encode(tone(freq_hz, rate, 3), rate), 1_000, 2_000).waveform
        assert 20 * np.log10(np.abs(waveform).max() / 0.5) < -60


def test_channels_are_averaged() -> None:
    left = tone(440, 16_000, 2)
    for other, factor in ((left, 1.0), (-left / 2, 0.25), (0 * left, 0.5)):
        waveform = clip_of(encode(np.stack([left, other]), 16_000), 0, 2_000).waveform
        assert np.abs(waveform - factor * left).max() < 1e-4
    six = np.stack([left, *[0 * left] * 5])
    assert np.abs(clip_of(encode(six, 16_000), 0, 2_000).waveform - left / 6).max() < 1e-4


def test_mean_is_removed() -> None:
    waveform = clip_of(encode(tone(440, 16_000, 2, 0.1) + 0.5, 16_000), 0, 2_000).waveform
    assert np.abs(waveform - tone(440, 16_000, 2, 0.1)).max() < 1e-4


def test_clip_that_ends_early_is_marked_as_short_and_not_padded() -> None:
    clip = clip_of(encode(tone(440, 44_100, 14), 44_100, "flac", "flac"), 10_000, 20_000)
    assert len(clip.waveform) == 4 * 16_000
    assert clip.is_short


def test_gaps_and_broken_packets_do_not_shift_later_audio() -> None:
    content = encode(with_marker(44_100), 44_100, "flac", "flac")
    middle = len(content) * 22 // 30
    broken = content[:middle] + os.urandom(8_000) + content[middle + 8_000 :]
    clip = clip_of(broken, 20_000, 30_000)
    assert len(clip.waveform) == 160_000
    assert abs(marker_error_ms(clip.waveform, 20_000)) < 1

    first, second = (encode(samples, 48_000, "matroska", "flac", start_s) for samples, start_s in _two_parts())
    clip = clip_of(_joined(first, second), 19_000, 29_000)
    assert np.abs(clip.waveform[2 * 16_000 : 4 * 16_000]).max() < 1e-4
    assert abs(marker_error_ms(clip.waveform, 19_000)) < 1


def _two_parts() -> list[tuple[np.ndarray, float]]:
    samples = with_marker(48_000)
    return [(samples[: 20 * 48_000], 0.0), (samples[24 * 48_000 :], 24.0)]


def _joined(*contents: bytes) -> bytes:
    """Concatenate the packets of files without changes."""
    file = BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = None
        for content in contents:
            with av.open(BytesIO(content), "r") as source:
                stream = stream or output.add_stream_from_template(source.streams.audio[0])
                for packet in source.demux(audio=0):
                    if packet.size:
                        packet.stream = stream
                        output.mux(packet)
    return file.getvalue()


def _video_only() -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream: Any = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for packet in stream.encode(av.VideoFrame(32, 32, "yuv420p")) + stream.encode(None):
            output.mux(packet)
    return file.getvalue()


def _truncated(container: str, codec: str) -> bytes:
    content = encode(with_marker(44_100 if codec != "libopus" else 48_000), 48_000, container, codec)
    return content[: len(content) // 2]


def _with_number(number: float) -> bytes:
    """A file of 30 s with an invalid sample in the middle."""
    content = bytearray(encode(tone(440, 16_000, 30), 16_000, "wav", "pcm_f64le"))
    at = len(content) - 8 * 15 * 16_000
    content[at : at + 8] = np.float64(number).tobytes()
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: b"", Reason.NOT_MEDIA, id="empty"),
        pytest.param(lambda: b"<!doctype html><html>not here</html>" * 99, Reason.NOT_MEDIA, id="html"),
        pytest.param(lambda: b'{"error": "no"}', Reason.NOT_MEDIA, id="json"),
        pytest.param(lambda: bytes(50_000), Reason.NOT_MEDIA, id="zeros"),
        pytest.param(lambda: np.random.default_rng(0).bytes(50_000), Reason.NOT_MEDIA, id="noise"),
        pytest.param(_video_only, Reason.NO_AUDIO, id="video only"),
        pytest.param(lambda: _with_number(float("nan")), Reason.NOT_MEDIA, id="not a number"),
        pytest.param(lambda: _with_number(1e300), Reason.NOT_MEDIA, id="beyond float32"),
        pytest.param(lambda: encode(tone(440, 16_000, 30), 16_000, "wav", "pcm_s64le"), Reason.NOT_MEDIA, id="int64"),
        pytest.param(lambda: _truncated("webm", "libopus"), Reason.TRUNCATED, id="truncated webm"),
        pytest.param(lambda: _truncated("ipod", "aac"), Reason.TRUNCATED, id="truncated m4a"),
        pytest.param(lambda: _truncated("mp3", "libmp3lame"), Reason.TRUNCATED, id="truncated mp3"),
        pytest.param(lambda: _truncated("flac", "flac"), Reason.TRUNCATED, id="truncated flac"),
        pytest.param(lambda: _truncated("wav", "pcm_s16le"), Reason.TRUNCATED, id="truncated wav"),
        pytest.param(lambda: _truncated("webm", "libopus")[:3_000], Reason.TRUNCATED, id="truncated before the start"),
        pytest.param(lambda: encode(tone(440, 16_000, 9), 16_000), Reason.OUT_OF_RANGE, id="too short"),
        pytest.param(lambda: encode(tone(440, 16_000, 10.02), 16_000), Reason.OUT_OF_RANGE, id="less than a frame"),
    ],
)
def test_each_failure_has_a_reason(make: Callable[[], bytes], reason: Reason) -> None:
    assert reason_of(make()) is reason


def test_empty_file_is_reported_as_not_media_in_memory_and_on_disk(tmp_path: Path) -> None:
    (tmp_path / "empty.mp3").touch()
    for content in (b"", tmp_path / "empty.mp3"):
        with pytest.raises(DecodeError, match=r"not_media\): the file is empty") as caught:
            decode_file(content)
        assert caught.value.reason is Reason.NOT_MEDIA


def test_truncated_file_yields_segments_before_its_end() -> None:
    assert not clip_of(_truncated("webm", "libopus"), 1_000, 5_000).is_short


def test_text_is_never_opened_as_a_file(tmp_path: Path) -> None:
    """Text from a foreign table could name a local file or an address."""
    path = tmp_path / "secret.wav"
    path.write_bytes(encode(tone(440, 16_000, 30), 16_000))
    for name in (str(path), path.as_uri(), "http://127.0.0.1:9/a.wav"):
        for function in (
            decode_file,
            measure_length_ms,
            lambda content: decode_segment(Media(content, "row"), 0, 1_000),
        ):
            with pytest.raises(TypeError, match="expected bytes or a Path, found str"):
                function(name)  # pyright: ignore[reportArgumentType]


def test_unreadable_file_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would block without a writer
    for path, reason in {
        tmp_path / "pipe.wav": Reason.NOT_MEDIA,
        Path("/dev/zero"): Reason.NOT_MEDIA,
        tmp_path: Reason.NOT_MEDIA,
        tmp_path / "gone.wav": Reason.CONNECTION,
        tmp_path / ("x" * 300): Reason.CONNECTION,
    }.items():
        assert reason_of(path) is reason


def test_playlists_open_no_other_files(tmp_path: Path) -> None:
    target = tmp_path / "secret.wav"
    target.write_bytes(encode(tone(440, 16_000, 30), 16_000))
    hls = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:30\n#EXTINF:30,\n{target}\n#EXT-X-ENDLIST\n"
    for name, text in {"a.m3u8": hls, "a.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n"}.items():
        (tmp_path / name).write_text(text)
        assert reason_of(text.encode()) is Reason.NOT_MEDIA
        assert reason_of(tmp_path / name) is Reason.NOT_MEDIA
        assert measure_length_ms(tmp_path / name) == 0


def test_clip_of_ten_hours_of_silence_takes_bounded_memory_and_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    place = tracks.Track._place

    def place_and_count(track: tracks.Track, frame: AudioFrame) -> Iterator[np.ndarray]:
        lengths.append(frame.samples)
        return place(track, frame)

    monkeypatch.setattr(tracks.Track, "_place", place_and_count)
    bomb = ten_hours_of_silence()
    assert len(bomb) < 20_000
    tracemalloc.start()
    clip = clip_of(bomb, 35_000_000, 35_010_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert sum(lengths) <= 2 * 60_000, "decoded more than the one or two FLAC frames that contain the segment"
    assert len(clip.waveform) == 160_000
    with pytest.raises(InputError, match="longer than 2 minutes"):
        decode_file(bomb, max_ms=120_000)


def _same_packets(num_packets: int, ticks: int) -> bytes:
    """A file that repeats one MP3 packet every `ticks` ms."""
    source = encode(tone(440, 16_000, 1), 16_000, "matroska", "libmp3lame")
    file = BytesIO()
    with av.open(BytesIO(source), "r") as template, av.open(file, "w", format="matroska") as output:
        stream = output.add_stream_from_template(template.streams.audio[0])
        payload = bytes(list(template.demux(audio=0))[10])
        for i in range(num_packets):
            packet = Packet(payload)
            packet.pts = packet.dts = i * ticks
            packet.time_base, packet.stream = Fraction(1, 1000), stream
            output.mux(packet)
    return file.getvalue()


def test_reading_stops_in_files_without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracks, "MAX_STALLED_PACKETS", 100)
    assert reason_of(_same_packets(500, ticks=0)) is Reason.NOT_MEDIA
    monkeypatch.setattr(tracks, "MAX_STALLED_PACKETS", 10_000)
    monkeypatch.setattr(tracks, "MAX_RUN_UP_S", 5)
    assert reason_of(_same_packets(500, ticks=0)) is Reason.NOT_MEDIA


def test_late_seek_is_retried_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a wrong index, every seek leads to 26 s."""
    content = encode(with_marker(48_000), 48_000, "matroska", "flac")
    seek = tracks.Track._seek
    monkeypatch.setattr(tracks.Track, "_seek", lambda track, _: seek(track, 26))
    clip = clip_of(content, 20_000, 29_000)
    assert len(clip.waveform) == 9 * 16_000
    assert abs(marker_error_ms(clip.waveform, 20_000)) < 1


def test_tags_in_any_encoding_are_accepted() -> None:
    content = encode(tone(440, 16_000, 2), 16_000)
    name = b"INAM" + (6).to_bytes(4, "little") + "Müller".encode("latin-1")
    tags = b"LIST" + (4 + len(name)).to_bytes(4, "little") + b"INFO" + name
    at = content.index(b"data")
    clip_of(content[:at] + tags + content[at:], 0, 1_000)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from([("webm", "libopus"), ("ipod", "aac"), ("mp3", "libmp3lame"), ("flac", "flac"), ("mpegts", "aac")]),
    st.integers(0, 2**31),
)
def test_damaged_files_never_raise(form: tuple[str, str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    content = bytearray(_small_file(*form))
    for at in generator.integers(0, generator.choice([100, 2_000, len(content)]), generator.choice([1, 10, 300])):
        content[at] = generator.integers(256)
    clip = decode_segment(Media(bytes(content), "test"), 1_200, 2_200)
    assert isinstance(clip, Failure) or np.isfinite(clip.waveform).all()


@cache
def _small_file(container: str, codec: str) -> bytes:
    return encode(tone(440, 48_000, 3), 48_000, container, codec)


def test_flac_round_trip() -> None:
    clip = clip_of(encode(tone(440, 44_100, 12) + 0.1, 44_100, "ipod", "aac"), 1_234, 11_234)
    content = encode_flac(clip.waveform)
    assert content == encode_flac(clip.waveform)
    assert b"Lavf" not in content
    again = clip_of(content, 1_234, 11_234, offset_ms=1_234)
    assert np.abs(again.waveform - clip.waveform).max() <= 1 / 32768
    assert not again.is_short
    loud = encode_flac(np.array([1.5, -1.5] * 400, np.float32))
    assert np.abs(clip_of(loud, 0, 50).waveform).max() <= 1


def test_whole_file_is_decoded_up_to_a_maximum_length(tmp_path: Path) -> None:
    path = tmp_path / "whole.webm"
    path.write_bytes(encode(tone(440, 48_000, 3.5), 48_000, "webm", "libopus"))
    assert abs(len(decode_file(path)) - 56_000) < 16 * 20
    with pytest.raises(InputError, match=r"can't be decoded \(not_media\)"):
        decode_file(b"<html>")
    with pytest.raises(InputError, match=r"none.wav can't be read: No such file"):
        decode_file(Path("none.wav"))
    with pytest.raises(InputError, match=r"whole.webm is longer than"):
        decode_file(path, max_ms=3_000)
