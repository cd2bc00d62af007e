import dataclasses

import numpy as np
import pytest
from scipy.stats import binomtest

from ast_model.evaluation.main_metric import compute_difference, estimate_main_metric
from ast_model.evaluation.predictions import Predictions
from ast_model.metrics import accuracy_change, mean_average_precision_interval

NUM_CLASSES = 4


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(NUM_CLASSES)[classes]


def predictions(hits: np.ndarray) -> Predictions:
    """Return predictions for clips of class 0, right where `hits` is true."""
    names, keys = np.array(list("abcd")), np.array([f"clip{n}" for n in range(len(hits))])
    targets = one_hot(np.zeros(len(hits), int)) > 0
    return Predictions(keys, names, names, one_hot(np.where(hits, 0, 1)), targets, np.ones(NUM_CLASSES), 1)


@pytest.mark.parametrize("num_hits", [0, 7, 19, 20])
def test_accuracy_interval_equals_scipy_at_any_accuracy(num_hits: int) -> None:
    found = estimate_main_metric(predictions(np.arange(20) < num_hits).evaluation)
    expected = binomtest(num_hits, 20).proportion_ci(method="wilson")
    assert (found.name, found.value) == ("accuracy", num_hits / 20)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.bounds.keys() == {"accuracy_low", "accuracy_high"}


def test_clips_with_several_classes_are_estimated_by_map() -> None:
    each = predictions(np.arange(20) < 12)
    several = dataclasses.replace(each, targets=each.targets | (np.arange(NUM_CLASSES) == 2))
    found = estimate_main_metric(several.evaluation)
    assert (found.name, found.value) == ("mAP", several.evaluation.metrics.mAP)
    assert (found.low, found.high) == mean_average_precision_interval(several.scores, several.targets)


def test_interval_of_a_change_in_accuracy_contains_the_true_change_in_95_percent_of_experiments() -> None:
    random, true_change, num_covered, num_experiments = np.random.default_rng(0), 0.15 - 0.05, 0, 1000
    targets = one_hot(np.zeros(60, int))
    for _ in range(num_experiments):
        outcome = random.choice(4, size=60, p=[0.05, 0.15, 0.5, 0.3])  # lost, gained, right twice, wrong twice
        before, after = (one_hot(np.where(np.isin(outcome, right), 0, 1)) for right in ((0, 2), (1, 2)))
        change, low, high = accuracy_change(before, after, targets)
        assert change == pytest.approx((after[:, 0] - before[:, 0]).mean())
        num_covered += low <= true_change <= high
    assert 0.93 < num_covered / num_experiments < 0.98


@pytest.mark.parametrize(("num_gained", "is_clear"), [(0, False), (3, False), (12, True)])
def test_few_gained_clips_prove_no_difference(num_gained: int, is_clear: bool) -> None:
    old, new = (predictions(np.arange(40) < num_right) for num_right in (20, 20 + num_gained))
    shuffled = new.select(new.keys[::-1])
    change = compute_difference(shuffled, old)
    assert (change.name, change.value, change.num_clips) == ("accuracy", num_gained / 40, 40)
    assert (change.low > 0) == is_clear
    back = compute_difference(old, new)
    assert (back.low, back.high) == pytest.approx((-change.high, -change.low))
