import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ast_model.embeddings import search
from ast_model.embeddings.search import find_nearest_rows
from pipeline.errors import InputError


def test_neighbours_equal_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_CLIPS", 100)  # several blocks, the last one incomplete
    rng = np.random.default_rng(0)
    embeddings, queries = rng.normal(size=(730, 16)), rng.normal(size=(9, 16))
    cosines, rows = find_nearest_rows(queries, embeddings, 12)
    oracle = NearestNeighbors(n_neighbors=12, metric="cosine").fit(embeddings)
    distances, expected = oracle.kneighbors(queries)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-6)


def test_fewer_clips_than_requested_neighbours_are_all_returned() -> None:
    cosines, rows = find_nearest_rows(np.eye(3)[:1], np.eye(3), 10)
    assert rows.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(cosines, [[1, 0, 0]], atol=1e-7)


def test_non_finite_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        find_nearest_rows(np.eye(2), np.array([[np.inf, 1.0]]), 1)
