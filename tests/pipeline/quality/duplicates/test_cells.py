import numpy as np
import pytest

from pipeline.quality.duplicates import cells
from pipeline.quality.duplicates.cells import NUM_CELLS_OF_ANCHOR, Cells


def test_search_finds_most_of_the_closest_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, centres = (rng.standard_normal((count, 8)).astype(np.float32) for count in (2_000, 512))
    exact = np.argsort(-(vectors @ centres.T), axis=1)[:, :NUM_CELLS_OF_ANCHOR]
    np.testing.assert_array_equal(Cells.around(centres).closest(vectors), exact)
    monkeypatch.setattr(cells, "NUM_GROUPS", 32)
    monkeypatch.setattr(cells, "GROUP_CELLS", 128)
    by_groups = Cells.around(centres)
    assert 0.9 < (by_groups.closest(vectors)[:, 0] == exact[:, 0]).mean() < 1
    assert by_groups.closest(vectors[:0]).shape == (0, NUM_CELLS_OF_ANCHOR)


def test_equal_centres_yield_distinct_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "NUM_GROUPS", 32)
    monkeypatch.setattr(cells, "GROUP_CELLS", 64)
    vectors = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    found = Cells.around(np.ones((512, 8), np.float32)).closest(vectors)
    assert all(len(set(each)) == NUM_CELLS_OF_ANCHOR for each in found.tolist())
