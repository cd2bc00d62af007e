"""Compare ast_model.metrics with scikit-learn, per class, on the size of AudioSet's evaluation split.

Prints a JSON line: seconds of both (best of three for ast_model.metrics), the largest difference in any class, and the
seconds of a bootstrap interval.
"""

import time
from collections.abc import Callable
from operator import itemgetter
from typing import TypeVar

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from ast_model.metrics import mean_average_precision_interval, tagging_metrics
from bench.lines import print_line

NUM_CLIPS, NUM_CLASSES = 19_185, 527
MEAN_LABELS_PER_CLIP = 2.7

R = TypeVar("R")


def draw_scores_and_targets(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw targets as imbalanced as AudioSet's, and scores that correlate with them."""
    random = np.random.default_rng(seed)
    frequency = 1 / np.arange(1, NUM_CLASSES + 1)
    targets = random.random((NUM_CLIPS, NUM_CLASSES)) < frequency / frequency.sum() * MEAN_LABELS_PER_CLIP
    scores = random.normal(size=targets.shape).astype(np.float32) + 2 * targets.astype(np.float32)
    return scores, targets.astype(np.float32)


def score_with_scikit_learn(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return average precision and AUC (2, C) per class."""
    columns = [(targets[:, index], scores[:, index]) for index in range(scores.shape[1])]
    return np.array([[measure(*column) for column in columns] for measure in (average_precision_score, roc_auc_score)])


def timed(function: Callable[[], R]) -> tuple[float, R]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    scores, targets = draw_scores_and_targets(seed=0)
    own_s, own = min((timed(lambda: tagging_metrics(scores, targets)) for _ in range(3)), key=itemgetter(0))
    peer_s, peer = timed(lambda: score_with_scikit_learn(scores, targets))
    interval_s, _ = timed(lambda: mean_average_precision_interval(scores, targets))
    difference = np.nanmax(np.abs(np.stack([own.average_precision, own.auc_per_class]) - peer))
    rest = {"max_difference": float(difference), "interval_s": interval_s}
    print_line("metrics", "s", own_s, ("scikit-learn", peer_s), **rest)


if __name__ == "__main__":
    main()
