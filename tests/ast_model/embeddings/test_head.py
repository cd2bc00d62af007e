"""The head against scikit-learn's logistic regression."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from ast_model.config import Loss
from ast_model.embeddings.head import PENALTIES, fit_head
from ast_model.metrics import accuracy
from pipeline.errors import InputError

NUM_CLIPS, NUM_DIMENSIONS, NUM_CLASSES = 120, 8, 4


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.normal(size=(NUM_CLIPS, NUM_DIMENSIONS)) * np.geomspace(0.1, 10, NUM_DIMENSIONS) + 3).astype(np.float32)


def make_targets(embeddings: np.ndarray, loss: Loss) -> np.ndarray:
    rng = np.random.default_rng(2)
    logits = (embeddings - 3) / np.geomspace(0.1, 10, NUM_DIMENSIONS) @ rng.normal(size=(NUM_DIMENSIONS, NUM_CLASSES))
    logits += rng.normal(size=logits.shape) - [0, 1, 0, 2]  # classes of different sizes
    return np.eye(NUM_CLASSES)[logits.argmax(axis=1)] if loss == "ce" else (logits > 0.5).astype(float)


@pytest.mark.parametrize("is_balanced", [False, True])
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_weights_are_scikit_learns(loss: Loss, is_balanced: bool, embeddings: np.ndarray) -> None:
    targets, penalty = make_targets(embeddings, loss), 0.03
    head = fit_head(embeddings, targets, loss, penalty=penalty, is_balanced=is_balanced)
    embeddings = embeddings.astype(np.float64)  # scikit-learn keeps single precision, and its error
    standard = (embeddings - embeddings.mean(axis=0)) / embeddings.std(axis=0)
    # Balanced weights add up to the number of clips, so C is the same with and without them.
    oracle = LogisticRegression(
        C=1 / (penalty * NUM_CLIPS), class_weight="balanced" if is_balanced else None, tol=1e-10, max_iter=10_000
    )
    if loss == "ce":
        expected = oracle.fit(standard, targets.argmax(axis=1)).predict_proba(standard)
        found = np.exp(head.logits(embeddings))
        found /= found.sum(axis=1, keepdims=True)
    else:
        expected = OneVsRestClassifier(oracle).fit(standard, targets).predict_proba(standard)
        found = 1 / (1 + np.exp(-head.logits(embeddings)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_the_penalty_that_cross_validates_best_is_taken(loss: Loss, embeddings: np.ndarray) -> None:
    targets = make_targets(embeddings, loss)
    head = fit_head(embeddings, targets, loss)
    assert tuple(head.score_of_penalty) == PENALTIES
    assert head.score_of_penalty[head.penalty] == max(head.score_of_penalty.values())
    again = fit_head(embeddings, targets, loss)
    np.testing.assert_array_equal(again.weight_CD, head.weight_CD)


def test_clips_of_a_group_are_never_on_both_sides() -> None:
    """Each group has a fingerprint and a random class: only a leak could score above chance."""
    rng = np.random.default_rng(3)
    fingerprints = rng.normal(size=(40, 64)).repeat(5, axis=0)
    targets = np.eye(2)[rng.integers(2, size=40).repeat(5)]
    groups = [f"recording {index // 5}" for index in range(200)]
    grouped = fit_head(fingerprints, targets, "ce", groups_N=groups)
    leaking = fit_head(fingerprints, targets, "ce")
    assert max(grouped.score_of_penalty.values()) < 0.75 < max(leaking.score_of_penalty.values())


def test_one_clip_per_class_and_a_constant_dimension_still_give_a_head() -> None:
    embeddings = np.array([[1.0, 5.0], [-1.0, 5.0]])
    head = fit_head(embeddings, np.eye(2), "ce")
    assert accuracy(head.logits(embeddings), np.eye(2)) == 1


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        fit_head(np.array([[np.nan], [1.0]]), np.eye(2), "ce")
