"""Lengths, stated and measured. The generated sounds have known lengths."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.audio.decode import DecodeError, decode_file, decode_segment
from pipeline.audio.length import measure_length_ms
from pipeline.records import Failure, Media, Reason
from tests.pipeline.audio.encoding import encode, tone

VBR = {"flags": "+qscale", "global_quality": "236"}


def without_stated_length(name: str) -> bytes:
    """A file of 12 s: noise between two stretches of silence, so that the first bit rate misleads."""
    sound = np.zeros(12 * 48_000)
    sound[4 * 48_000 : 8 * 48_000] = np.random.default_rng(0).normal(0, 0.1, 4 * 48_000)
    container, codec, options = UNSTATED[name]
    return encode(sound, 48_000, container, codec, options=options)


def with_sizes(content: bytes, riff: int, data: int) -> bytes:
    """Replace the sizes in a WAV file's header."""
    at = content.index(b"data") + 4
    return content[:4] + riff.to_bytes(4, "little") + content[8:at] + data.to_bytes(4, "little") + content[at + 4 :]


def aiff_from_a_pipe() -> bytes:
    """An AIFF file with the number of frames that SoX writes into a pipe."""
    content = encode(tone(440, 16_000, 3), 16_000, "aiff", "pcm_s16be")
    frames, data = content.index(b"COMM") + 10, content.index(b"SSND") + 4
    content = content[:frames] + (0x7F000000 // 2).to_bytes(4, "big") + content[frames + 4 :]
    return content[:data] + (0x7F000000 + 8).to_bytes(4, "big") + content[data + 4 :]


def avi_from_a_pipe() -> bytes:
    """An AVI file with a number of frames that means unknown."""
    content = encode(tone(440, 16_000, 3), 16_000, "avi", "libmp3lame")
    at = content.index(b"auds") + 32
    return content[:at] + (1 << 30).to_bytes(4, "little") + content[at + 4 :]


UNSTATED = {
    "VBR MP3 without Xing header": ("mp3", "libmp3lame", {"write_xing": "0", **VBR}),
    "MP2": ("mp2", "mp2", {}),
    "VBR MP3 in live Matroska": ("matroska", "libmp3lame", {"live": "1", **VBR}),
    "live WebM": ("webm", "libopus", {"live": "1"}),
    "ADTS": ("adts", "aac", {}),
    "MPEG-TS": ("mpegts", "mp2", {}),
}


@pytest.mark.parametrize("name", UNSTATED)
def test_files_without_a_stated_length_are_whole_and_measured(name: str) -> None:
    content = without_stated_length(name)
    assert measure_length_ms(content) == pytest.approx(12_000, abs=100)
    assert len(decode_file(content)) / 16 == pytest.approx(12_000, abs=100)


def test_the_estimate_of_ffmpeg_for_vbr_mp3_is_wrong() -> None:
    """Otherwise the test above would pass with the estimate."""
    content = without_stated_length("VBR MP3 without Xing header")
    with av.open(BytesIO(content), "r") as container:
        assert container.duration is not None and abs(container.duration / 1e6 - 12) > 3


def test_a_segment_of_vbr_mp3_states_only_known_lengths() -> None:
    content = without_stated_length("VBR MP3 without Xing header")
    lengths = {}
    for start_ms, end_ms in ((0, 5_000), (8_000, 18_000)):
        clip = decode_segment(Media(content, "test"), start_ms, end_ms)
        assert not isinstance(clip, Failure), clip
        lengths[start_ms] = clip.media.media_length_s
    assert lengths == {0: None, 8_000: pytest.approx(12, abs=0.1)}


def test_cut_mp3_with_xing_header_is_truncated() -> None:
    content = encode(tone(440, 44_100, 12), 44_100, "mp3", "libmp3lame")
    assert measure_length_ms(content) == pytest.approx(12_000, abs=50)
    with pytest.raises(DecodeError) as caught:
        decode_file(content[: len(content) // 2])
    assert caught.value.reason is Reason.TRUNCATED


def test_joined_mp3_files_count_as_one() -> None:
    parts = [encode(tone(freq_hz, 44_100, 6), 44_100, "mp3", "libmp3lame") for freq_hz in (440, 880)]
    assert measure_length_ms(b"".join(parts)) == pytest.approx(12_000, abs=200)


PIPED_SIZES = {
    "SoX": (0x7FFFF024, 0x7FFFF000),
    "2 GiB": (0x80000024, 0x80000000),
    "INT_MAX": (0x7FFFFFFF, 0x7FFFFFDB),
    "4 GiB - 9": (0xFFFFFFF7, 0xFFFFFFD3),
    "FFmpeg": (0xFFFFFFFF, 0xFFFFFFFF),
    "zero": (0, 0),
}


@pytest.mark.parametrize("name", PIPED_SIZES)
def test_wav_written_to_a_pipe_is_whole(name: str, tmp_path: Path) -> None:
    content = with_sizes(encode(tone(440, 16_000, 2), 16_000), *PIPED_SIZES[name])
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    for each in (content, path):
        assert len(decode_file(each)) == 32_000
        assert measure_length_ms(each) == 2_000


@pytest.mark.parametrize("make", [aiff_from_a_pipe, avi_from_a_pipe])
def test_other_files_written_to_a_pipe_are_whole(make: Callable[[], bytes]) -> None:
    assert len(decode_file(make())) / 16 == pytest.approx(3_000, abs=100)
    assert measure_length_ms(make()) == pytest.approx(3_000, abs=100)


@pytest.mark.parametrize("form", [("w64", "pcm_s16le"), ("caf", "pcm_s16le"), ("mpegts", "mp2"), ("wav", "pcm_s16le")])
def test_zeros_after_the_end_do_not_count(form: tuple[str, str]) -> None:
    content = encode(tone(440, 16_000, 3), 16_000, *form) + bytes(100_000)
    assert len(decode_file(content)) / 16 == pytest.approx(3_000, abs=100)
    assert measure_length_ms(content) == pytest.approx(3_000, abs=100)


def test_wav_with_a_plausible_size_and_missing_data_is_truncated() -> None:
    content = encode(tone(440, 16_000, 2), 16_000)
    for cut in (content[:40_000], with_sizes(content, 0x7000_0024, 0x7000_0000)):
        with pytest.raises(DecodeError) as caught:
            decode_file(cut)
        assert caught.value.reason is Reason.TRUNCATED


def test_length_is_counted_from_the_first_packet() -> None:
    late = encode(tone(440, 48_000, 3.3), 48_000, "webm", "libopus", start_s=5)
    assert measure_length_ms(late) == pytest.approx(3_300, abs=20)


def test_invalid_positions_in_headers_do_not_raise(tmp_path: Path) -> None:
    """A CAF file with a chunk longer than any disk, similar to SoX's files from a pipe."""
    content = encode(tone(440, 16_000, 3), 16_000, "caf", "pcm_s16le")
    at = content.index(b"data")
    damaged = content[:at] + b"free" + (1 << 60).to_bytes(8, "big") + content[at:]
    path = tmp_path / "a.caf"
    path.write_bytes(damaged)
    for each in (damaged, path):
        assert measure_length_ms(each) in (0, 3_000)  # FFmpeg may ignore the chunk
        decode_segment(Media(each, "test"), 0, 1_000)
