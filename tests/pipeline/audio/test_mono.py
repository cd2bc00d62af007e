import numpy as np
import pytest

from pipeline.audio.decode import Clip, DecodeError, decode_file, decode_segment, stream_file
from pipeline.records import Failure, Media, Reason
from tests.pipeline.audio.encoding import encode, tone


def decode(samples: np.ndarray, rate: int = 16_000, container: str = "wav", codec: str = "pcm_s16le") -> Clip:
    clip = decode_segment(Media(encode(samples, rate, container, codec), "test"), 0, 2_000)
    assert isinstance(clip, Clip), clip
    return clip


@pytest.mark.parametrize("codec", [("wav", "pcm_s16le"), ("wav", "pcm_u8"), ("webm", "libopus"), ("ipod", "aac")])
def test_inverted_stereo_yields_the_first_channel(codec: tuple[str, str]) -> None:
    left = tone(440, 48_000, 2)
    clip = decode(np.stack([left, -left]), 48_000, *codec)
    assert np.abs(np.abs(clip.waveform[8_000:24_000]).max() - 0.5) < 0.03
    assert clip.media.mix_db is not None and clip.media.mix_db < -30


def test_channels_that_cancel_are_replaced_despite_dc_and_gain() -> None:
    left = tone(440, 16_000, 2)
    for other in (0.2 - left, -0.9 * left):
        assert np.abs(decode(np.stack([left, other])).waveform - left).max() < 1e-3


def test_a_silent_first_channel_is_not_chosen() -> None:
    front = tone(440, 16_000, 2)
    six = np.stack([0 * front, 0 * front, front, -front, 0 * front, 0 * front])
    assert np.abs(decode(six).waveform - front).max() < 1e-3


def test_streams_of_inverted_stereo_are_as_loud_as_their_channels() -> None:
    left = tone(440, 16_000, 40)
    content = encode(np.stack([left, -left]), 16_000, "flac", "flac")
    for waveform in (decode_file(content), np.concatenate(list(stream_file(content)))):
        assert np.abs(waveform - left).max() < 1e-3


@pytest.mark.parametrize(
    ("factors", "expected_db"), [((1, 1), 0), ((1, 0), -3.01), ((1, -0.5), -10), ((1, 0, 0, 0, 0, 0), -7.78)]
)
def test_ordinary_channels_are_averaged_and_measured(factors: tuple[float, ...], expected_db: float) -> None:
    left = tone(440, 16_000, 2)
    clip = decode(np.stack([factor * left for factor in factors]))
    assert np.abs(clip.waveform - np.mean(factors) * left).max() < 1e-3
    assert clip.media.mix_db == pytest.approx(expected_db, abs=0.02)


def test_silence_and_single_channels_have_no_relative_level() -> None:
    assert decode(np.zeros((2, 32_000))).media.mix_db is None
    assert decode(tone(440, 16_000, 2)).media.mix_db is None


@pytest.mark.parametrize("codec", ["pcm_f32le", "pcm_f64le"])
@pytest.mark.parametrize("scale", [32_767, 2**31 - 1])
def test_float_samples_in_the_range_of_integers_are_refused(codec: str, scale: int) -> None:
    content = encode(scale * tone(440, 16_000, 2, 0.3), 16_000, "wav", codec)
    failure = decode_segment(Media(content, "test"), 0, 2_000)
    assert isinstance(failure, Failure) and failure.reason is Reason.NOT_MEDIA
    assert "float samples reach" in failure.detail
    with pytest.raises(DecodeError, match=f"float samples reach {str(scale * 3)[:3]}.*; divide them by 32768"):
        decode_file(content)


def test_float_samples_slightly_above_full_scale_are_clipped() -> None:
    clip = decode(tone(440, 16_000, 2, 4), 16_000, "wav", "pcm_f32le")
    assert np.abs(clip.waveform).max() == pytest.approx(1, abs=1e-3)
    assert clip.media.peak == pytest.approx(4, abs=0.01)
