"""Scores against targets: what a tagger is worth.

Only a class's positives need their place among all scores, so each class costs one sort of its scores and a few
look-ups. Equal scores count as one threshold, as in scikit-learn. Axes: N clips, C classes, P positives of a class,
R resamples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from pipeline.errors import InputError

_CLASSES_PER_BLOCK = 64
_RESAMPLES_PER_BLOCK = 50
_HALF_WIDTH_OF_95_PERCENT = float(ndtri(0.975))


@dataclass(frozen=True, eq=False)
class TaggingMetrics:
    """Means over the classes that have positives, and what each class has."""

    mAP: float
    """Mean of the average precisions."""
    auc: float
    """Mean of the areas under the ROC curve."""
    d_prime: float
    """√2 times the normal quantile of the mean AUC."""
    average_precision: np.ndarray
    """(C,), NaN for a class without positives."""
    auc_per_class: np.ndarray
    """(C,), NaN for a class without positives or without negatives."""
    num_classes_scored: int
    """Classes with at least one positive."""


def tagging_metrics(scores: np.ndarray, targets: np.ndarray) -> TaggingMetrics:
    """Score a multi-label tagger.

    scores (N, C): any monotonic measure, such as logits or probs. targets (N, C): 0 or 1.
    Raises InputError for other shapes or values, scores that are not finite, and targets without any positive.
    """
    _check(scores, targets)
    average_precision = np.full(scores.shape[1], np.nan)
    auc = np.full(scores.shape[1], np.nan)
    for index, scores_N, is_positive_N in _classes(scores, targets):
        sorted_N, sorted_P = np.sort(scores_N), np.sort(scores_N[is_positive_N])
        average_precision[index] = _average_precision(sorted_N, sorted_P)
        auc[index] = _area_under_curve(sorted_N, sorted_P)
    mean_auc = float(np.nanmean(auc)) if np.isfinite(auc).any() else float("nan")
    return TaggingMetrics(
        mAP=float(np.nanmean(average_precision)),
        auc=mean_auc,
        d_prime=float(d_prime(mean_auc)),
        average_precision=average_precision,
        auc_per_class=auc,
        num_classes_scored=int(np.isfinite(average_precision).sum()),
    )


def d_prime(auc: float | np.ndarray) -> float | np.ndarray:
    """Turn an area under the ROC curve into the distance of two unit normals that would have it."""
    return np.sqrt(2) * ndtri(auc)


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Share of clips whose highest score is that of their one class; scores and targets as in tagging_metrics."""
    return float(np.mean(scores.argmax(axis=1) == _single_labels(scores, targets)))


def mean_average_precision_interval(
    scores: np.ndarray, targets: np.ndarray, num_resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of mAP over other draws of as many clips, by bootstrap.

    Its width comes from the spread of the resamples, its middle is the mAP itself: a repeated clip lifts the average
    precision of a rare class, so the resamples' own quantiles lie too high.
    """
    mean = tagging_metrics(scores, targets).mAP
    blocks = _resample(len(scores), num_resamples, seed)
    resampled = [_resampled_mean_average_precision(scores, targets, draws_NR) for draws_NR in blocks]
    half_width = _HALF_WIDTH_OF_95_PERCENT * float(np.std(np.concatenate(resampled), ddof=1))
    return max(0.0, mean - half_width), min(1.0, mean + half_width)


def mean_average_precision_change(
    before: np.ndarray, after: np.ndarray, targets: np.ndarray, num_resamples: int = 200, seed: int = 0
) -> tuple[float, float, float]:
    """Return by how much the mAP of the scores `after` is above that of `before`, and the 95 % interval of that.

    Both are scores (N, C) of the same clips, and each resample draws the same clips for both: what makes a draw hard
    for both does not count.
    """
    change = tagging_metrics(after, targets).mAP - tagging_metrics(before, targets).mAP
    changes = []
    for draws_NR in _resample(len(targets), num_resamples, seed):
        means = [_resampled_mean_average_precision(scores, targets, draws_NR) for scores in (before, after)]
        changes.append(means[1] - means[0])
    half_width = _HALF_WIDTH_OF_95_PERCENT * float(np.std(np.concatenate(changes), ddof=1))
    return change, change - half_width, change + half_width


def _resample(num_clips: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each clip (N, R), some resamples at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, num_resamples, _RESAMPLES_PER_BLOCK):
        num = min(_RESAMPLES_PER_BLOCK, num_resamples - start)
        draws = [np.bincount(random.integers(num_clips, size=num_clips), minlength=num_clips) for _ in range(num)]
        yield np.stack(draws, axis=1)


def _check(scores: np.ndarray, targets: np.ndarray) -> None:
    if scores.ndim != 2 or scores.shape != targets.shape or scores.size == 0:
        raise InputError(
            f"Expected scores and targets of one shape (clips, classes), but found {scores.shape} and {targets.shape}."
        )
    if not np.isfinite(scores).all():
        clip, index = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(
            f"Expected finite scores, but clip {clip} has {scores[clip, index]} for class {index} "
            f"({np.count_nonzero(~np.isfinite(scores))} such scores in all). Did the training diverge?"
        )
    if not np.isin(targets, (0, 1)).all():
        raise InputError("Expected targets of 0 and 1, but found other values. Mixed targets can't be scored.")
    if not targets.any():
        raise InputError(f"None of the {targets.shape[1]} classes has a positive among {len(targets)} clips.")


def _single_labels(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    _check(scores, targets)
    num_labels_N = np.count_nonzero(targets, axis=1)
    if (num_labels_N != 1).any():
        clip = int(np.argmax(num_labels_N != 1))
        raise InputError(
            f"Accuracy needs exactly one label per clip, but clip {clip} has {num_labels_N[clip]}. Use mAP instead."
        )
    return targets.argmax(axis=1)


def _classes(scores: np.ndarray, targets: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the index, scores (N,) and positives (N,) of each class that has positives.

    Classes are columns; copying a few at a time into rows makes each of them contiguous.
    """
    for start in range(0, scores.shape[1], _CLASSES_PER_BLOCK):
        block = slice(start, start + _CLASSES_PER_BLOCK)
        rows = zip(
            np.ascontiguousarray(scores[:, block].T), np.ascontiguousarray(targets[:, block].T != 0), strict=True
        )
        for index, (scores_N, is_positive_N) in enumerate(rows, start):
            if is_positive_N.any():
                yield index, scores_N, is_positive_N


def _average_precision(sorted_N: np.ndarray, sorted_P: np.ndarray) -> float:
    """Mean over the positives of the precision among all scores that are at least the positive's."""
    num_selected = len(sorted_N) - np.searchsorted(sorted_N, sorted_P, side="left")
    num_hits = len(sorted_P) - np.searchsorted(sorted_P, sorted_P, side="left")
    return float(np.mean(num_hits / num_selected))


def _area_under_curve(sorted_N: np.ndarray, sorted_P: np.ndarray) -> float:
    """Chance that a positive scores higher than a negative; an equal score counts half."""
    num_negatives = len(sorted_N) - len(sorted_P)
    if num_negatives == 0:
        return float("nan")
    twice_below = _twice_rank(sorted_N, sorted_P) - _twice_rank(sorted_P, sorted_P)
    return float(np.mean(twice_below) / (2 * num_negatives))


def _twice_rank(sorted_values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    below = np.searchsorted(sorted_values, queries, side="left")
    not_above = np.searchsorted(sorted_values, queries, side="right")
    return below + not_above


def _resampled_mean_average_precision(scores: np.ndarray, targets: np.ndarray, draws_NR: np.ndarray) -> np.ndarray:
    """Return the mAP of each resample that has a positive; draws_NR says how often it holds each clip."""
    weights_NR = draws_NR.astype(np.float32)
    sum_R, num_R = np.zeros(weights_NR.shape[1]), np.zeros(weights_NR.shape[1])
    for _, scores_N, is_positive_N in _classes(scores, targets):
        precision_sum_R, num_positives_R = _weighted_precision(scores_N, is_positive_N, weights_NR)
        sum_R += np.divide(precision_sum_R, num_positives_R, out=np.zeros_like(sum_R), where=num_positives_R > 0)
        num_R += num_positives_R > 0
    scored = num_R > 0
    return sum_R[scored] / num_R[scored]


def _weighted_precision(
    scores_N: np.ndarray, is_positive_N: np.ndarray, weights_NR: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum of the positives' precisions and the number of positives (R,), each clip counted by its weight."""
    order_N = np.argsort(-scores_N)
    positives_P = order_N[is_positive_N[order_N]]
    # A threshold per distinct score of a positive; what each one adds to those above it is a run of the order.
    ends_P = len(scores_N) - np.searchsorted(scores_N[order_N[::-1]], scores_N[positives_P], side="left")
    ends, firsts = np.unique(ends_P, return_index=True)
    starts = np.concatenate([[0], ends[:-1]])
    num_selected = np.add.reduceat(weights_NR[order_N[: ends[-1]]], starts, axis=0).cumsum(axis=0)
    new_hits = np.add.reduceat(weights_NR[positives_P], firsts, axis=0)
    num_hits = new_hits.cumsum(axis=0)
    precision = np.divide(num_hits, num_selected, out=np.zeros_like(num_hits), where=num_selected > 0)
    return (new_hits * precision).sum(axis=0), num_hits[-1]
