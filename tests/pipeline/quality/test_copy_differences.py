import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.fbank import compute_fbank
from pipeline.measures.measure import measure_clip
from pipeline.quality.copy_differences import COLUMNS, compare_measures

RATE = 16_000
NUM_CLIPS = 16


def recording(seed: int) -> np.ndarray:
    """Make 20 s of sound with notes and noise bursts that change several times a second."""
    rng = np.random.default_rng(seed)
    pieces = []
    while sum(map(len, pieces)) < 20 * RATE:
        seconds = np.arange(int(rng.uniform(0.1, 0.5) * RATE)) / RATE
        tones = sum(rng.uniform(0, 0.1) * np.sin(2 * np.pi * hz * seconds) for hz in rng.uniform(200, 4000, 4))
        pieces.append(tones + rng.uniform(0.003, 0.03) * rng.standard_normal(len(seconds)))
    return np.concatenate(pieces)[: 20 * RATE].astype(np.float32)


def measured(waveforms: list[np.ndarray], codec: str = "flac") -> pa.Table:
    rows = []
    for number, waveform in enumerate(waveforms):
        fbank_TM = compute_fbank(torch.from_numpy(waveform)).numpy().astype(np.float16)
        measures = measure_clip(waveform, fbank_TM)
        rows.append({name: getattr(measures, name) for name in COLUMNS} | {"codec": codec, "key": f"{number}_0"})
    schema = [("rms_db", pa.float32()), ("bandwidth_hz", pa.float32()), ("codec", pa.string())]
    schema += [("rate_hz", pa.int32()), ("silence", pa.float32()), ("fingerprint", pa.binary()), ("key", pa.string())]
    return pa.Table.from_pylist(rows, pa.schema(schema))


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    return [recording(seed) for seed in range(NUM_CLIPS)]


@pytest.fixture(scope="module")
def clips(recordings: list[np.ndarray]) -> pa.Table:
    return measured([each[: 10 * RATE] for each in recordings])


def kinds_of(first: pa.Table, second: pa.Table) -> list[str]:
    return compare_measures(first, second)["kinds"].to_pylist()


def test_unchanged_and_slightly_noisy_clips_raise_no_alarm(recordings: list[np.ndarray], clips: pa.Table) -> None:
    assert kinds_of(clips, clips) == ["identical"] * NUM_CLIPS
    rng = np.random.default_rng(1)
    # As strong as the error of a good codec: 40 dB below the signal, and delayed by 10 ms.
    noisy = [
        each[160 : 160 + 10 * RATE] + 0.01 * each.std() * rng.standard_normal(10 * RATE).astype(np.float32)
        for each in recordings
    ]
    assert set(kinds_of(clips, measured(noisy))) <= {"same", "identical"}


@pytest.mark.parametrize("shift_s", [0.1, 0.5, 2.0, 5.0, 7.0])
def test_shifts_are_measured(recordings: list[np.ndarray], clips: pa.Table, shift_s: float) -> None:
    start = int(shift_s * RATE)
    shifted = measured([each[start : start + 10 * RATE] for each in recordings])
    for first, second, sign in ((clips, shifted, 1), (shifted, clips, -1)):
        found = compare_measures(first, second)
        assert found["kinds"].to_pylist() == ["shifted"] * NUM_CLIPS
        np.testing.assert_allclose(found["offset_s"].to_numpy(), sign * shift_s, atol=0.041)


def test_clips_without_overlap_and_swapped_clips_are_different(recordings: list[np.ndarray], clips: pa.Table) -> None:
    assert kinds_of(clips, measured([each[10 * RATE :] for each in recordings])) == ["different"] * NUM_CLIPS
    swapped = clips.take(pa.array(np.roll(np.arange(NUM_CLIPS), 1))).set_column(
        clips.column_names.index("key"), "key", clips["key"]
    )
    assert kinds_of(clips, swapped) == ["different"] * NUM_CLIPS


def test_gain_codec_bandwidth_and_silence_are_named(recordings: list[np.ndarray], clips: pa.Table) -> None:
    whole = [each[: 10 * RATE] for each in recordings]
    louder = compare_measures(clips, measured([1.12 * each for each in whole], codec="opus"))
    assert louder["kinds"].to_pylist() == ["level codec"] * NUM_CLIPS
    np.testing.assert_allclose(louder["level_db"].to_numpy(), 20 * np.log10(1.12), atol=0.01)
    spectra = [np.fft.rfft(each) for each in whole]
    for spectrum in spectra:
        spectrum[len(spectrum) // 2 :] = 0
    muffled = measured([np.fft.irfft(each, 10 * RATE).astype(np.float32) for each in spectra])
    assert all("bandwidth" in kinds for kinds in kinds_of(clips, muffled))
    silent = measured([np.zeros(10 * RATE, np.float32)] * NUM_CLIPS)
    assert kinds_of(clips, silent) == ["silent"] * NUM_CLIPS
    assert kinds_of(silent, silent) == ["identical"] * NUM_CLIPS
