"""Metrics of taggers: mAP, AUC, d′ and accuracy, with 95 % intervals.

Average precision depends only on the ranks of a class's positives, so each class costs one sort and a few binary
searches. This makes 527 classes and hundreds of resamples affordable. Equal scores count as one threshold, as in
scikit-learn.
Axes: N clips, C classes, P positives of a class, R resamples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from pipeline.errors import InputError

_CLASSES_PER_BLOCK = 64
"""Number of classes copied to contiguous rows together. More would only use more memory."""
_RESAMPLES_PER_BLOCK = 50
"""Number of resamples that share one sort per class. More would only use more memory."""
_HALF_WIDTH_OF_95_PERCENT = float(ndtri(0.975))
_AUC_MARGIN = 1e-9
"""Closest distance of an AUC to 0 or 1, which bounds d′. No evaluation has enough clips to resolve a smaller
distance."""


@dataclass(frozen=True, eq=False)
class TaggingMetrics:
    """Metrics of a multi-label tagger, per class and as means over the classes with positives."""

    mAP: float
    """Mean average precision over classes."""
    auc: float
    """Mean area under the ROC curve over classes."""
    d_prime: float
    """√2 times the normal quantile of the mean AUC, at most 8.48 in absolute value."""
    average_precision: np.ndarray
    """(C,) average precision per class; NaN for a class without positives."""
    auc_per_class: np.ndarray
    """(C,) area under the ROC curve per class; NaN for a class without positives or without negatives."""
    num_classes_scored: int
    """Number of classes with at least one positive."""


def tagging_metrics(scores: np.ndarray, targets: np.ndarray) -> TaggingMetrics:
    """Score a multi-label tagger.

    scores (N, C): logits, probabilities or other values that rank clips within each class.
    targets (N, C): 0 or 1.
    Raises InputError for invalid shapes or values, non-finite scores, and targets without any positive.

    >>> scores = np.array([[0.9, 0.2], [0.4, 0.8], [0.6, 0.1]])
    >>> targets = np.array([[1, 0], [1, 1], [0, 0]])
    >>> metrics = tagging_metrics(scores, targets)
    >>> round(metrics.mAP, 3), metrics.auc, metrics.num_classes_scored
    (0.917, 0.75, 2)
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
    """Convert AUC to d′, the distance between two unit normal distributions with this AUC.

    A perfect AUC of 1 has an infinite d′, which JSON cannot represent, so the result is bounded by ±8.48.
    """
    return np.sqrt(2) * ndtri(np.clip(auc, _AUC_MARGIN, 1 - _AUC_MARGIN))


def accuracy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of clips whose only class has the highest score. Arguments as in `tagging_metrics`."""
    return float(np.mean(scores.argmax(axis=1) == _single_labels(scores, targets)))


def accuracy_interval(scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy by Wilson's score method, which also holds for few clips and near 1."""
    share, weight = accuracy(scores, targets), _HALF_WIDTH_OF_95_PERCENT**2 / len(scores)
    centre = (share + weight / 2) / (1 + weight)
    half_width = math.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def accuracy_change(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> tuple[float, float, float]:
    """Return the change in accuracy from `before` to `after`, and its 95 % interval.

    Only clips that exactly one model gets right count for the interval. It is the adjusted Wald interval for paired
    proportions, which adds half a clip to each cell of the table of outcomes, so that few clips prove nothing
    (Agresti and Min, Statistics in Medicine 24, 2005).
    """
    labels_N = _single_labels(after, targets)
    hits_before_N, hits_after_N = (scores.argmax(axis=1) == labels_N for scores in (before, after))
    num_gained, num_lost = np.sum(hits_after_N & ~hits_before_N), np.sum(hits_before_N & ~hits_after_N)
    num_clips, discordant = len(labels_N) + 2, num_gained + num_lost + 1
    centre = (num_gained - num_lost) / num_clips
    half_width = _HALF_WIDTH_OF_95_PERCENT * np.sqrt(discordant - num_clips * centre**2) / num_clips
    change = (num_gained - num_lost) / len(labels_N)
    return float(change), float(centre - half_width), float(centre + half_width)


def mean_average_precision_interval(
    scores: np.ndarray, targets: np.ndarray, num_resamples: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of mAP by bootstrap over clips.

    The interval is centred at the mAP, with the spread of the resamples as its width. The resamples' quantiles would be
    biased upwards, because repeated clips raise the average precision of rare classes.
    """
    mean = tagging_metrics(scores, targets).mAP
    blocks = _resample(len(scores), num_resamples, seed)
    resampled = [resampled_mean_average_precision(scores, targets, draws_NR) for draws_NR in blocks]
    half_width = _HALF_WIDTH_OF_95_PERCENT * float(np.std(np.concatenate(resampled), ddof=1))
    return max(0.0, mean - half_width), min(1.0, mean + half_width)


def mean_average_precision_change(
    before: np.ndarray, after: np.ndarray, targets: np.ndarray, num_resamples: int = 200, seed: int = 0
) -> tuple[float, float, float]:
    """Return the change in mAP from `before` to `after`, and its 95 % interval by paired bootstrap.

    before, after: scores (N, C) of the same clips. Each resample draws the same clips for both, so its difficulty
    cancels out.
    """
    change = tagging_metrics(after, targets).mAP - tagging_metrics(before, targets).mAP
    changes = []
    for draws_NR in _resample(len(targets), num_resamples, seed):
        means = [resampled_mean_average_precision(scores, targets, draws_NR) for scores in (before, after)]
        changes.append(means[1] - means[0])
    half_width = _HALF_WIDTH_OF_95_PERCENT * float(np.std(np.concatenate(changes), ddof=1))
    return change, change - half_width, change + half_width


def _resample(num_clips: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks of resamples as counts (N, R): how often each resample draws each clip."""
    random = np.random.default_rng(seed)
    for start in range(0, num_resamples, _RESAMPLES_PER_BLOCK):
        num = min(_RESAMPLES_PER_BLOCK, num_resamples - start)
        draws = [np.bincount(random.integers(num_clips, size=num_clips), minlength=num_clips) for _ in range(num)]
        yield np.stack(draws, axis=1)


def _check(scores: np.ndarray, targets: np.ndarray) -> None:
    if scores.ndim != 2 or scores.shape != targets.shape or scores.size == 0:
        raise InputError(
            f"Expected scores and targets of the same shape (clips, classes), but found {scores.shape} and"
            f" {targets.shape}."
        )
    if not np.isfinite(scores).all():
        clip, index = np.argwhere(~np.isfinite(scores))[0]
        raise InputError(
            f"Expected finite scores, but clip {clip} has {scores[clip, index]} for class {index} "
            f"({np.count_nonzero(~np.isfinite(scores))} non-finite scores in total). Did the training diverge?"
        )
    if not np.isin(targets, (0, 1)).all():
        raise InputError("Expected targets of 0 and 1, but found other values. Targets mixed by mixup can't be scored.")
    if not targets.any():
        raise InputError(
            f"Expected at least one positive, but found none for {targets.shape[1]} classes and {len(targets)} clips."
        )


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
    """Yield the index, the scores (N,) and the mask of positives (N,) of each class with positives.

    Copies blocks of columns to contiguous rows, which sort faster.
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
    """Return the mean precision at the score of each positive."""
    num_selected = len(sorted_N) - np.searchsorted(sorted_N, sorted_P, side="left")
    num_hits = len(sorted_P) - np.searchsorted(sorted_P, sorted_P, side="left")
    return float(np.mean(num_hits / num_selected))


def _area_under_curve(sorted_N: np.ndarray, sorted_P: np.ndarray) -> float:
    """Return the probability that a positive scores above a negative; equal scores count half."""
    num_negatives = len(sorted_N) - len(sorted_P)
    if num_negatives == 0:
        return float("nan")
    twice_below = _twice_rank(sorted_N, sorted_P) - _twice_rank(sorted_P, sorted_P)
    return float(np.mean(twice_below) / (2 * num_negatives))


def _twice_rank(sorted_values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    below = np.searchsorted(sorted_values, queries, side="left")
    not_above = np.searchsorted(sorted_values, queries, side="right")
    return below + not_above


def resampled_mean_average_precision(scores: np.ndarray, targets: np.ndarray, draws_NR: np.ndarray) -> np.ndarray:
    """Return the mAP of each resample with a positive. draws_NR: how often each resample draws each clip."""
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
    """Return the sum of the positives' precisions and the number of positives (R,). Clips count by their weight."""
    order_N = np.argsort(-scores_N)
    positives_P = order_N[is_positive_N[order_N]]
    # Use one threshold per distinct score of a positive. The clips between two thresholds are a slice of the order.
    ends_P = len(scores_N) - np.searchsorted(scores_N[order_N[::-1]], scores_N[positives_P], side="left")
    ends, firsts = np.unique(ends_P, return_index=True)
    starts = np.concatenate([[0], ends[:-1]])
    num_selected = np.add.reduceat(weights_NR[order_N[: ends[-1]]], starts, axis=0).cumsum(axis=0)
    new_hits = np.add.reduceat(weights_NR[positives_P], firsts, axis=0)
    num_hits = new_hits.cumsum(axis=0)
    precision = np.divide(num_hits, num_selected, out=np.zeros_like(num_hits), where=num_selected > 0)
    return (new_hits * precision).sum(axis=0), num_hits[-1]
