import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from ast_model.metrics import (
    accuracy,
    d_prime,
    mean_average_precision_interval,
    tagging_metrics,
)
from pipeline.errors import InputError


def draw(num_clips: int, num_classes: int, seed: int, num_levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw scores, rounded to `num_levels` to create ties, and targets with at least one positive per class."""
    random = np.random.default_rng(seed)
    targets = random.random((num_clips, num_classes)) < random.uniform(0.01, 0.5, num_classes)
    targets[random.integers(num_clips, size=num_classes), np.arange(num_classes)] = True
    scores = random.normal(size=targets.shape) + targets
    if num_levels:
        scores = np.round(scores * num_levels) / num_levels
    return scores.astype(np.float32), targets.astype(np.float32)


@pytest.mark.parametrize(("num_clips", "num_levels"), [(400, 0), (400, 10), (400, 1), (7, 1)])
def test_average_precision_and_auc_equal_scikit_learn(num_clips: int, num_levels: int) -> None:
    # 70 classes are more than one block.
    scores, targets = draw(num_clips, 70, seed=num_levels, num_levels=num_levels)
    metrics = tagging_metrics(scores, targets)
    expected = [average_precision_score(targets[:, index], scores[:, index]) for index in range(70)]
    np.testing.assert_allclose(metrics.average_precision, expected, atol=1e-12)
    assert metrics.mAP == pytest.approx(np.mean(expected), abs=1e-12)
    with_negatives = np.flatnonzero(~targets.all(axis=0))
    expected = [roc_auc_score(targets[:, index], scores[:, index]) for index in with_negatives]
    np.testing.assert_allclose(metrics.auc_per_class[with_negatives], expected, atol=1e-12)
    assert metrics.auc == pytest.approx(np.mean(expected), abs=1e-12)


def test_d_prime_equals_the_official_log() -> None:
    # Epochs 1 and 5 of AST's run on the full AudioSet.
    assert d_prime(0.9758373322866230604) == pytest.approx(2.792359475154447157, abs=1e-12)
    assert d_prime(0.9735813170082899815) == pytest.approx(2.738267814373973597, abs=1e-12)


def test_perfect_ranking_has_a_bounded_d_prime() -> None:
    perfect = tagging_metrics(np.eye(2), np.eye(2))
    assert (perfect.auc, perfect.d_prime) == (1, pytest.approx(8.48, abs=0.005))
    assert d_prime(0.0) == pytest.approx(-perfect.d_prime)


def test_classes_without_positives_are_excluded_and_counted() -> None:
    scores, targets = draw(50, 4, seed=1)
    targets[:, 2] = 0
    metrics = tagging_metrics(scores, targets)
    assert np.isnan(metrics.average_precision[2])
    assert np.isnan(metrics.auc_per_class[2])
    assert metrics.num_classes_scored == 3
    others = [0, 1, 3]
    assert metrics.mAP == pytest.approx(average_precision_score(targets[:, others], scores[:, others]))


def test_class_without_negatives_has_average_precision_but_no_auc() -> None:
    metrics = tagging_metrics(np.array([[0.1], [0.2]]), np.array([[1], [1]]))
    assert metrics.mAP == 1
    assert np.isnan([metrics.auc, metrics.d_prime]).all()


def test_accuracy_equals_scikit_learn() -> None:
    random = np.random.default_rng(2)
    labels = random.integers(5, size=200)
    scores = random.normal(size=(200, 6)) + 2 * np.eye(6)[labels]
    guesses = scores.argmax(axis=1)
    assert accuracy(scores, np.eye(6)[labels]) == accuracy_score(labels, guesses)


def test_interval_has_the_width_of_the_spread_of_resamples() -> None:
    scores, targets = draw(300, 5, seed=3, num_levels=5)
    low, high = mean_average_precision_interval(scores, targets, num_resamples=400, seed=4)
    assert (low + high) / 2 == pytest.approx(tagging_metrics(scores, targets).mAP)
    random = np.random.default_rng(5)
    draws = [random.integers(300, size=300) for _ in range(200)]
    spread = np.std([average_precision_score(targets[clips], scores[clips]) for clips in draws])
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert (low, high) == mean_average_precision_interval(scores, targets, num_resamples=400, seed=4)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), r"the same shape .* found \(3, 2\) and \(3, 4\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "the same shape"),
        (np.array([[0.0, 1.0], [2.0, np.nan]]), np.eye(2), "clip 1 has nan for class 1"),
        (np.zeros((2, 2)), np.full((2, 2), 0.5), "targets of 0 and 1"),
        (np.zeros((3, 2)), np.zeros((3, 2)), "found none for 2 classes and 3 clips"),
    ],
)
def test_unscorable_input_is_refused(scores: np.ndarray, targets: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tagging_metrics(scores, targets)


def test_accuracy_with_several_labels_per_clip_is_refused() -> None:
    with pytest.raises(InputError, match="clip 1 has 2"):
        accuracy(np.zeros((2, 2)), np.array([[0, 1], [1, 1]]))
