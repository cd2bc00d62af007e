"""Calibrate scores to probabilities, and choose a threshold per class.

Platt scaling fits one slope and one offset per class to the logits of held-out clips, temperature scaling one slope for
all classes. Thresholds then turn scores into decisions, for the best F1 or a target precision.

Axes: N clips, C classes.
Sources: Platt, "Probabilistic outputs for support vector machines", 1999; Guo et al., "On calibration of modern neural
networks", ICML 2017 (temperature, expected calibration error).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from ast_model.config import Loss
from pipeline.errors import InputError

Method = Literal["none", "temperature", "platt"]
MIN_POSITIVES = 20
"""Minimum number of positive clips for a separate fit. Classes with fewer positives share one fit."""
NUM_BINS = 15
"""Number of score bins of the calibration error, as in Guo et al."""
MAX_LOGIT = 30.0
"""Bound for logits, because scores of exactly 0 or 1 have infinite logits."""


@dataclass(frozen=True)
class Calibration:
    """Maps a checkpoint's scores to probabilities and decisions. Stored next to it as `calibration.json`."""

    labels: tuple[str, ...]
    loss: Loss
    method: Method
    slopes: tuple[float, ...]
    """Factor of each class's logit (C,)."""
    offsets: tuple[float, ...]
    """Offset of each class's logit (C,), added after applying the factor."""
    thresholds: tuple[float, ...]
    """Lowest calibrated score (C,) at which a class counts as present."""
    is_shared: tuple[bool, ...]
    """True (C,) for classes that share one fit because they have too few positives."""

    def apply(self, scores_NC: np.ndarray) -> np.ndarray:
        """Return calibrated scores (N, C) float32."""
        logits_NC = _logits(scores_NC, self.loss) * np.asarray(self.slopes) + np.asarray(self.offsets)
        return (softmax(logits_NC, axis=1) if self.loss == "ce" else expit(logits_NC)).astype(np.float32)

    def decide(self, scores_NC: np.ndarray) -> np.ndarray:
        """Return a mask (N, C) of the classes present, given uncalibrated scores."""
        return self.apply(scores_NC) >= np.asarray(self.thresholds, np.float32)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Calibration":
        """Parse the output of `to_json`. Raises InputError for invalid content."""
        try:
            fields: dict[str, Any] = {
                name: tuple(item) if isinstance(item, list) else item for name, item in value.items()
            }
            calibration = cls(**fields)
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"expected a calibration written by jobs/calibrate.py, found other JSON: {error}"
            ) from error
        lengths = {len(each) for each in (calibration.labels, calibration.slopes, calibration.thresholds)}
        if len(lengths) != 1:
            raise InputError(f"expected a slope and a threshold for each class, found lengths {sorted(lengths)}")
        return calibration


def calibrate(
    scores_NC: np.ndarray,
    targets_NC: np.ndarray,
    labels: Sequence[str],
    loss: Loss,
    method: Method = "platt",
    precision: float | None = None,
) -> Calibration:
    """Fit a calibration to held-out clips.

    loss: the model's loss. Cross-entropy excludes `platt`, because only a temperature preserves the sum of the scores.
    precision: target precision of the thresholds. Default: the best F1.
    Raises InputError for scores outside [0, 1], or targets without any positive.
    """
    if scores_NC.shape != targets_NC.shape or scores_NC.shape[1] != len(labels):
        raise InputError(f"expected as many scores as targets and labels, found {scores_NC.shape}, {targets_NC.shape}")
    if not ((scores_NC >= 0) & (scores_NC <= 1)).all() or not targets_NC.any():
        raise InputError("expected scores between 0 and 1 and at least one positive, found other values")
    if loss == "ce" and method == "platt":
        raise InputError("expected the method temperature or none for a model trained with cross-entropy, found platt")
    targets_NC = targets_NC.astype(bool)
    is_shared = targets_NC.sum(axis=0) < MIN_POSITIVES
    slopes, offsets = _fit_scaling(_logits(scores_NC, loss), targets_NC, is_shared, loss, method)
    unfinished = Calibration(
        tuple(labels), loss, method, tuple(slopes), tuple(offsets), (0.0,) * len(labels), tuple(is_shared.tolist())
    )
    thresholds = _fit_thresholds(unfinished.apply(scores_NC), targets_NC, is_shared, precision)
    return replace(unfinished, thresholds=tuple(thresholds))


def _logits(scores_NC: np.ndarray, loss: Loss) -> np.ndarray:
    scores_NC = scores_NC.astype(np.float64)
    if loss == "ce":  # exact up to a constant per clip, which the softmax ignores
        return np.log(scores_NC.clip(min=np.exp(-MAX_LOGIT)))
    return logit(scores_NC).clip(-MAX_LOGIT, MAX_LOGIT)


def _fit_scaling(
    logits_NC: np.ndarray, targets_NC: np.ndarray, is_shared: np.ndarray, loss: Loss, method: Method
) -> tuple[list[float], list[float]]:
    num_classes = logits_NC.shape[1]
    slopes, offsets = np.ones(num_classes), np.zeros(num_classes)
    if method == "temperature":
        slopes[:] = _fit_temperature(logits_NC, targets_NC, loss)
    elif method == "platt":
        for column in np.flatnonzero(~is_shared):
            slopes[column], offsets[column] = _fit_platt(logits_NC[:, column], targets_NC[:, column])
        if is_shared.any() and targets_NC[:, is_shared].any():
            pooled = _fit_platt(logits_NC[:, is_shared].ravel(), targets_NC[:, is_shared].ravel())
            slopes[is_shared], offsets[is_shared] = pooled
    return slopes.tolist(), offsets.tolist()


def _fit_temperature(logits_NC: np.ndarray, targets_NC: np.ndarray, loss: Loss) -> float:
    """Return the inverse temperature that minimises the negative log-likelihood."""

    def nll(log_slope: float) -> float:
        scaled_NC = logits_NC * np.exp(log_slope)
        if loss == "ce":
            return -float(log_softmax(scaled_NC, axis=1)[targets_NC].mean())
        return float(np.logaddexp(0, np.where(targets_NC, -scaled_NC, scaled_NC)).mean())

    found: Any = minimize_scalar(nll, bounds=(-4.0, 4.0), method="bounded")
    return float(np.exp(found.x))


def _fit_platt(logits_N: np.ndarray, targets_N: np.ndarray) -> tuple[float, float]:
    """Fit slope and offset to Platt's soft targets, which bound the slope of a separable class."""
    num_positive, num_negative = targets_N.sum(), (~targets_N).sum()
    soft_N = np.where(targets_N, (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2))

    def nll(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled_N = parameters[0] * logits_N + parameters[1]
        value = (np.logaddexp(0, scaled_N) - soft_N * scaled_N).mean()
        residual_N = expit(scaled_N) - soft_N
        return float(value), np.array([(residual_N * logits_N).mean(), residual_N.mean()])

    # Allow only positive slopes, because a negative slope would reverse the ranking.
    found: Any = minimize(nll, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(1e-3, 1e3), (None, None)])
    return float(found.x[0]), float(found.x[1])


def _fit_thresholds(
    scores_NC: np.ndarray, targets_NC: np.ndarray, is_shared: np.ndarray, precision: float | None
) -> list[float]:
    thresholds = np.full(scores_NC.shape[1], 0.5)
    for column in np.flatnonzero(~is_shared):
        thresholds[column] = best_threshold(scores_NC[:, column], targets_NC[:, column], precision)
    if is_shared.any() and targets_NC[:, is_shared].any():
        pooled = scores_NC[:, is_shared].ravel(), targets_NC[:, is_shared].ravel()
        thresholds[is_shared] = best_threshold(*pooled, precision)
    return thresholds.tolist()


def best_threshold(scores_N: np.ndarray, targets_N: np.ndarray, precision: float | None = None) -> float:
    """Return the threshold with the best F1 or, given a precision, the lowest threshold that reaches it.

    If no threshold reaches the precision, return the threshold with the highest precision.
    """
    from sklearn.metrics import precision_recall_curve  # imported late, because it takes a second that taggers avoid

    precisions, recalls, thresholds = precision_recall_curve(targets_N, scores_N)
    precisions, recalls = precisions[:-1], recalls[:-1]  # the last point of the curve has no threshold
    if precision is None:
        f1 = 2 * precisions * recalls / np.maximum(precisions + recalls, 1e-12)
        return float(thresholds[f1.argmax()])
    reached = np.flatnonzero(precisions >= precision)
    return float(thresholds[reached[0] if len(reached) else precisions.argmax()])


def reliability(scores_NC: np.ndarray, targets_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean score, the share of positives and the number of scores of each non-empty score bin."""
    scores, targets = scores_NC.ravel().astype(np.float64), targets_NC.ravel().astype(np.float64)
    bins = np.minimum((scores * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    is_used = counts > 0
    mean_scores = np.bincount(bins, scores, NUM_BINS)[is_used] / counts[is_used]
    shares = np.bincount(bins, targets, NUM_BINS)[is_used] / counts[is_used]
    return mean_scores, shares, counts[is_used]


def expected_calibration_error(scores_NC: np.ndarray, targets_NC: np.ndarray) -> float:
    """Return the expected calibration error over all pairs of clip and class."""
    mean_scores, shares, counts = reliability(scores_NC, targets_NC)
    return float(np.average(np.abs(mean_scores - shares), weights=counts))
