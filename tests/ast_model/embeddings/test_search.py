import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ast_model.embeddings import search
from ast_model.embeddings.search import ApproximateIndex, ExactIndex
from pipeline.errors import InputError


def test_exact_neighbours_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BLOCK_CLIPS", 100)  # several blocks, the last one not full
    rng = np.random.default_rng(0)
    embeddings, queries = rng.normal(size=(730, 16)), rng.normal(size=(9, 16))
    cosines, rows = ExactIndex(embeddings).search(queries, 12)
    oracle = NearestNeighbors(n_neighbors=12, metric="cosine").fit(embeddings)
    distances, expected = oracle.kneighbors(queries)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-6)


def test_there_are_no_more_neighbours_than_clips() -> None:
    cosines, rows = ExactIndex(np.eye(3)).search(np.eye(3)[:1], 10)
    assert rows.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(cosines, [[1, 0, 0]], atol=1e-7)


def test_the_approximate_index_finds_nearly_all_neighbours() -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 32))
    embeddings = centres[rng.integers(50, size=20_000)] + 0.3 * rng.normal(size=(20_000, 32))
    queries = embeddings[rng.choice(20_000, 50)] + 0.05 * rng.normal(size=(50, 32))
    _, exact = ExactIndex(embeddings).search(queries, 10)
    _, found = ApproximateIndex(embeddings).search(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])
    assert recall > 0.9


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        ExactIndex(np.array([[np.inf, 1.0]]))
