"""Bound the effect of missing clips on mAP."""

import numpy as np

from ast_model.metrics import resampled_mean_average_precision, tagging_metrics

NUM_DELETIONS = 100
"""Number of simulated deletions. Their standard deviation is then known within 14 %."""
NUM_DEVIATIONS = 3.0
"""Half-width of the bounds in standard deviations. 2 would suffice for 95 %, but estimates from few clips need a
margin."""


def bound_whole_list(scores: np.ndarray, targets: np.ndarray, num_missing: int, seed: int = 0) -> tuple[float, float]:
    """Return bounds of the mAP for a whole list, assuming that its missing clips are random.

    scores, targets: (N, C) of the scored clips. num_missing: number of clips of the list without scores.
    Deletes the same share of the scored clips at random as is missing from the list. Assumes that the original deletion
    changed the mAP by as much.
    """
    num_scored = len(scores)
    mean = tagging_metrics(scores, targets).mAP
    if not num_missing:
        return mean, mean
    num_deleted = min(num_scored - 1, max(1, round(num_scored * num_missing / (num_scored + num_missing))))
    random = np.random.default_rng(seed)
    kept_NR = np.ones((num_scored, NUM_DELETIONS), np.int64)
    for column in kept_NR.T:
        column[random.choice(num_scored, num_deleted, replace=False)] = 0
    changes = mean - resampled_mean_average_precision(scores, targets, kept_NR)
    centre, half_width = mean + float(changes.mean()), NUM_DEVIATIONS * float(changes.std(ddof=1))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)
