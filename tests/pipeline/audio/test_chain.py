"""Chained Ogg: files that follow each other in one file, as recordings of internet radio contain them."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.chain import split_chain
from pipeline.audio.decode import decode_file, decode_segment, stream_file
from pipeline.audio.length import measure_length_ms
from pipeline.records import Failure, Media, Reason
from tests.pipeline.audio.encoding import encode, tone

RATES = {"libopus": (48_000, 48_000, 48_000), "flac": (44_100, 16_000, 48_000), "vorbis": (44_100, 22_050, 44_100)}
LINK_S = (3.5, 2.25, 4.0)
FREQS_HZ = (440, 1_000, 2_000)


def links(codec: str) -> list[bytes]:
    sounds = [tone(freq_hz, rate, s) for freq_hz, rate, s in zip(FREQS_HZ, RATES[codec], LINK_S, strict=True)]
    return [encode(np.stack([each] * 2), rate, "ogg", codec) for each, rate in zip(sounds, RATES[codec], strict=True)]


@pytest.mark.parametrize("codec", RATES)
def test_links_follow_each_other(codec: str, tmp_path: Path) -> None:
    parts = links(codec)
    path = tmp_path / "radio.ogg"
    path.write_bytes(b"".join(parts))
    expected = np.concatenate([np.concatenate(list(stream_file(part))) for part in parts])
    for content in (path, path.read_bytes()):
        assert list(split_chain(content)) == parts
        assert np.array_equal(np.concatenate(list(stream_file(content))), expected)
        assert np.abs(decode_file(content) - (expected - expected.mean())).max() < 1e-6
        assert measure_length_ms(content) == pytest.approx(len(expected) / 16, abs=2)


@pytest.mark.parametrize("codec", ["libopus", "flac"])
def test_segments_are_found_in_every_link(codec: str) -> None:
    content = b"".join(links(codec))
    whole = decode_file(content)
    for start_ms, end_ms in ((500, 1_500), (4_000, 5_000), (6_500, 9_500), (3_000, 7_000)):
        clip = decode_segment(Media(content, "test"), start_ms, end_ms)
        assert not isinstance(clip, Failure), clip
        assert len(clip.waveform) == 16 * (end_ms - start_ms)
        expected = whole[16 * start_ms : 16 * end_ms]
        shifts = [np.abs(np.roll(clip.waveform, shift) - expected)[50:-50].mean() for shift in range(-16, 17)]
        assert min(shifts) < 0.02
    end = decode_segment(Media(content, "test"), 9_000, 12_000)
    assert not isinstance(end, Failure) and end.is_short
    assert len(end.waveform) == pytest.approx(16 * 750, abs=32)
    beyond = decode_segment(Media(content, "test"), 10_000, 12_000)
    assert isinstance(beyond, Failure) and beyond.reason is Reason.OUT_OF_RANGE


def test_the_same_file_twice_is_twice_as_long() -> None:
    part = links("libopus")[0]
    assert measure_length_ms(part * 2) == pytest.approx(2 * measure_length_ms(part), abs=1)
    assert len(decode_file(part * 2)) == 2 * len(decode_file(part))


def test_other_files_have_one_link(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    path.write_bytes(links("flac")[0])
    for content in (path, path.read_bytes(), b"<html>", b"", b"OggS"):
        assert list(split_chain(content)) == [content]


def test_segments_of_flac_in_ogg_are_at_their_time() -> None:
    """FFmpeg misplaces the last page after a seek, by up to 0.7 s."""
    time_s = np.arange(4 * 48_000) / 48_000
    content = encode(np.stack([0.5 * np.sin(2 * np.pi * (300 + 100 * time_s) * time_s)] * 2), 48_000, "ogg", "flac")
    whole = decode_file(content)
    for start_ms in range(0, 3_750, 250):
        clip = decode_segment(Media(content, "test"), start_ms, start_ms + 250)
        assert not isinstance(clip, Failure), clip
        assert np.abs(clip.waveform - whole[16 * start_ms :][:4_000]).max() < 0.01
