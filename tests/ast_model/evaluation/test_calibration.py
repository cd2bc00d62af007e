"""Compare calibration with scikit-learn, and with known probabilities."""

import json

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score

from ast_model.evaluation import calibration
from ast_model.evaluation.calibration import (
    MIN_POSITIVES,
    NUM_BINS,
    Calibration,
    best_threshold,
    calibrate,
    expected_calibration_error,
    reliability,
)
from pipeline.errors import InputError

NUM_CLIPS, LABELS = 4_000, ("Hum", "Siren", "Beep")


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(-1, 2, size=(NUM_CLIPS, len(LABELS)))


@pytest.fixture(scope="module")
def targets(logits: np.ndarray) -> np.ndarray:
    """Targets with the probability 1 / (1 + exp(−logit))."""
    return np.random.default_rng(1).random(logits.shape) < expit(logits)


def test_overconfident_scores_become_true_probabilities(logits: np.ndarray, targets: np.ndarray) -> None:
    overconfident = expit(3 * logits + [1, 0, -1])
    found = calibrate(overconfident, targets, LABELS, "bce")
    np.testing.assert_allclose(found.slopes, 1 / 3, rtol=0.15)
    np.testing.assert_allclose(found.apply(overconfident), expit(logits), atol=0.03)
    before, after = (expected_calibration_error(each, targets) for each in (overconfident, found.apply(overconfident)))
    assert after < 0.015 < 0.1 < before


def test_platt_scaling_equals_logistic_regression_on_platts_targets(logits: np.ndarray, targets: np.ndarray) -> None:
    """scikit-learn lacks soft targets; weighted copies of each clip with both labels are equivalent."""
    slope, offset = calibration._fit_platt(2 * logits[:, 0], targets[:, 0])
    num_positive = targets[:, 0].sum()
    soft = np.where(targets[:, 0], (num_positive + 1) / (num_positive + 2), 1 / (NUM_CLIPS - num_positive + 2))
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    twice = np.concatenate([2 * logits[:, 0]] * 2)[:, None]
    oracle.fit(twice, np.repeat([1, 0], NUM_CLIPS), sample_weight=np.concatenate([soft, 1 - soft]))
    np.testing.assert_allclose(
        [slope, offset], [*oracle.coef_.ravel(), *np.ravel(oracle.intercept_)], rtol=1e-3, atol=1e-4
    )


def test_temperature_inverts_a_sharpened_softmax() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, size=(NUM_CLIPS, len(LABELS)))
    classes = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((NUM_CLIPS, 1))).argmax(axis=1)
    targets = np.eye(len(LABELS))[classes]
    found = calibrate(softmax(2.5 * logits, axis=1), targets, LABELS, "ce", "temperature")
    np.testing.assert_allclose(found.slopes, 1 / 2.5, rtol=0.05)
    np.testing.assert_allclose(found.apply(softmax(2.5 * logits, axis=1)).sum(axis=1), 1, atol=1e-5)


def test_thresholds_have_the_best_f1_or_the_target_precision(logits: np.ndarray, targets: np.ndarray) -> None:
    scores, target = expit(logits[:, 0]), targets[:, 0]
    best = f1_score(target, scores >= best_threshold(scores, target))
    assert all(f1_score(target, scores >= threshold) <= best for threshold in np.unique(scores)[::20])
    wanted = best_threshold(scores, target, precision=0.9)
    assert precision_score(target, scores >= wanted) >= 0.9
    assert precision_score(target, scores >= scores[scores < wanted].max()) < 0.9, "no lower threshold reaches it"


def test_rare_classes_share_their_fit(logits: np.ndarray, targets: np.ndarray) -> None:
    rare = targets.copy()
    for column in (1, 2):
        rare[np.flatnonzero(rare[:, column])[MIN_POSITIVES - 1 :], column] = False
    found = calibrate(expit(logits), rare, LABELS, "bce")
    assert found.is_shared == (False, True, True)
    assert found.thresholds[1] == found.thresholds[2] != found.thresholds[0]
    assert found.slopes[1] == found.slopes[2]


def test_reliability_equals_scikit_learn(logits: np.ndarray, targets: np.ndarray) -> None:
    scores = expit(logits)
    mean_scores, shares, counts = reliability(scores, targets)
    expected_shares, expected_scores = calibration_curve(targets.ravel(), scores.ravel(), n_bins=NUM_BINS)
    np.testing.assert_allclose(mean_scores, expected_scores)
    np.testing.assert_allclose(shares, expected_shares)
    assert counts.sum() == scores.size


def test_json_round_trip(logits: np.ndarray, targets: np.ndarray) -> None:
    found = calibrate(expit(logits), targets, LABELS, "bce", precision=0.8)
    again = Calibration.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    np.testing.assert_array_equal(again.decide(expit(logits)), found.decide(expit(logits)))


@pytest.mark.parametrize("value", [[], {}, {"labels": []}, {"more": 1}])
def test_other_json_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="calibration"):
        Calibration.from_json(value)  # pyright: ignore[reportArgumentType]


def test_extreme_scores_stay_finite_and_invalid_requests_are_refused(targets: np.ndarray) -> None:
    found = calibrate(targets.astype(float), targets, LABELS, "bce")
    assert np.isfinite(found.apply(targets.astype(float))).all()
    with pytest.raises(InputError, match="between 0 and 1"):
        calibrate(targets * 2.0, targets, LABELS, "bce")
    with pytest.raises(InputError, match="temperature"):
        calibrate(targets.astype(float), targets, LABELS, "ce", "platt")
