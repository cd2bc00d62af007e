import numpy as np
import pytest
import torch

from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.windows import Window, WindowGrid, plan_grid, pool_windows
from pipeline.errors import ConfigError


@pytest.mark.parametrize(("num_frames", "length", "hop"), [(1, 4, 4), (4, 4, 2), (9, 4, 3), (10, 2, 7), (11, 4, 1)])
@pytest.mark.parametrize("piece", [1, 3, 100])
def test_streamed_windows_equal_windows_of_the_whole(num_frames: int, length: int, hop: int, piece: int) -> None:
    fbank_TM = torch.arange(num_frames * 128, dtype=torch.float32).reshape(-1, 128)
    grid = WindowGrid(length, hop, length / 100)
    found = dict(grid.stream(fbank_TM.split(piece)))
    assert list(found) == grid.cut(num_frames, max_windows=len(found))
    with pytest.raises(ConfigError, match=f"at most 0 windows, found {len(found)} in"):
        grid.cut(num_frames, max_windows=0)
    for window, window_TM in found.items():
        assert 0 < window.num_frames <= length and torch.equal(window_TM, fbank_TM[window.start : window.stop])


def test_no_frames_have_no_windows() -> None:
    assert WindowGrid(4, 2, 0.04).cut(0) == []


def test_window_mean_is_weighted_by_frames() -> None:
    values = np.random.default_rng(0).random((3, 5), np.float32)
    windows = [Window(0, 8), Window(8, 16), Window(16, 19)]
    np.testing.assert_allclose(pool_windows(values, windows), np.average(values, axis=0, weights=[8, 8, 3]), rtol=1e-6)


def test_windows_default_to_the_model_length_and_half_of_it() -> None:
    assert plan_grid(128, TaggingOptions()) == WindowGrid(128, 64, 1.28)
    assert plan_grid(128, TaggingOptions(window_s=0.03)) == WindowGrid(1, 1, 0.03)
    assert plan_grid(1024, TaggingOptions(window_s=1.0, hop_s=0.25)) == WindowGrid(98, 25, 1.0)
    with pytest.raises(ConfigError, match=r"between 0\.025 and the model's 1\.28 s, found 10"):
        plan_grid(128, TaggingOptions(window_s=10))
