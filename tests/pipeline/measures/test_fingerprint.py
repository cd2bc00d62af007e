import numpy as np
import pytest

from bench.near_duplicates import ENCODINGS, cut, fbank_of, make_scenes, reencode
from pipeline.fbank_settings import SAMPLE_RATE_HZ
from pipeline.measures.fingerprint import NUM_STEPS, STEP_S, closest, fingerprint_of, unpack
from pipeline.quality.duplicates.pair_table import MAX_DISTANCE

SECONDS_12 = np.arange(12 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Chirps over faint noise."""
    chance = np.random.default_rng(0)
    chirps = []
    for _ in range(8):
        time_S = np.arange(round(chance.uniform(0.3, 2) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        start_hz, sweep_hz = chance.uniform(300, 1500), chance.uniform(-200, 1000)
        tones_S = np.sin(2 * np.pi * np.outer([1, 2, 3], start_hz * time_S + sweep_hz * time_S**2 / 2)).sum(0)
        chirps.append((tones_S * np.exp(-2 * time_S)).astype(np.float32))
    return make_scenes(chirps, 1)[0]


def compare(first_S: np.ndarray, second_S: np.ndarray) -> tuple[float, float]:
    """Return the distance and the shift of two waveforms."""
    words = [unpack([fingerprint_of(fbank_of(each_S))]) for each_S in (first_S, second_S)]
    distance_1, shift_s_1 = closest(*words)
    return float(distance_1[0]), float(shift_s_1[0])


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda each: f"{each[0]}-{each[2]}")
@pytest.mark.parametrize(("shift_s", "gain"), [(0.5, 0.1), (-0.23, 1.0)])
def test_copies_with_another_codec_rate_level_and_start_match(
    scene: np.ndarray, encoding: tuple[str, str, int, int], shift_s: float, gain: float
) -> None:
    distance, found_s = compare(cut(scene), reencode(cut(scene, shift_s) * np.float32(gain), *encoding))
    assert distance < MAX_DISTANCE
    assert found_s == pytest.approx(shift_s, abs=2 * STEP_S)


def test_clip_equals_itself_and_differs_from_its_sounds_in_another_order(scene: np.ndarray) -> None:
    clip_S = cut(scene)
    assert compare(clip_S, clip_S) == (0.0, 0.0)
    assert compare(clip_S, np.roll(clip_S, len(clip_S) // 2))[0] > MAX_DISTANCE + 0.2


@pytest.mark.parametrize(
    "steady_S",
    [np.zeros_like(SECONDS_12), np.full_like(SECONDS_12, 0.2), 0.5 * np.sin(2 * np.pi * 440 * SECONDS_12)],
    ids=["silence", "constant", "tone"],
)
def test_steady_sounds_match_nothing(steady_S: np.ndarray) -> None:
    waveform_S = steady_S.astype(np.float32)
    assert compare(waveform_S, waveform_S)[0] == 1.0


def test_noise_matches_its_copy() -> None:
    chance = np.random.default_rng(0)
    first_S, second_S = 0.1 * chance.standard_normal((2, len(SECONDS_12)), np.float32)
    assert compare(first_S, reencode(first_S, *ENCODINGS[0]))[0] < MAX_DISTANCE
    assert compare(first_S, second_S)[0] > 0.9


@pytest.mark.parametrize("num_frames", [0, 1, 15, 16, 20, 998, 3000])
def test_fingerprints_have_four_bytes_per_step_and_at_most_1000(num_frames: int) -> None:
    fbank_TM = np.random.default_rng(0).standard_normal((num_frames, 128)).astype(np.float16)
    expected = min(max(0, (num_frames - 12) // 4), NUM_STEPS)
    assert len(fingerprint_of(fbank_TM)) == 4 * expected
