import numpy as np

from ast_model.tagging.spectrogram import MAX_COLUMNS, Spectrogram


def test_long_spectrogram_stays_within_its_width_and_keeps_the_mean() -> None:
    spectrogram = Spectrogram()
    levels = np.random.default_rng(0).random(50_000).astype(np.float32)
    for piece in np.split(levels, [5, 3_000, 3_001, 20_011]):
        spectrogram.add(np.repeat(piece[:, None], 128, axis=1))
    num = spectrogram.frames_per_column
    assert num == 32 and 50_000 // num - 1 <= len(spectrogram.columns_TM) <= MAX_COLUMNS
    expected = levels[: len(spectrogram.columns_TM) * num].reshape(-1, num).mean(axis=1)
    np.testing.assert_allclose(spectrogram.columns_TM[:, 0], expected, atol=1e-5)
