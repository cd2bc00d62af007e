"""Compute an evaluation's main metric with a 95 % interval, and paired differences between evaluations."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.predictions import Predictions
from ast_model.metrics import (
    accuracy_change,
    accuracy_interval,
    mean_average_precision_change,
    mean_average_precision_interval,
)
from pipeline.errors import MismatchError

NUM_RESAMPLES = 200
"""Number of resamples for an interval of mAP. Intervals of accuracies have a closed form."""


@dataclass(frozen=True)
class MetricEstimate:
    """A metric with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    @property
    def bounds(self) -> dict[str, float]:
        """Ends of the interval, by their names in files and in MLflow."""
        return {f"{self.name}_low": self.low, f"{self.name}_high": self.high}


@dataclass(frozen=True)
class MetricDifference:
    """Difference of a metric between two models, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    num_clips: int
    """Number of clips on which both models were evaluated."""

    def __str__(self) -> str:
        return f"{self.name} {self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}] on {self.num_clips} clips"


def estimate_main_metric(evaluation: Evaluation, num_resamples: int = NUM_RESAMPLES) -> MetricEstimate:
    """Return the metric that selects the best epoch, with its interval."""
    name, scores, targets = evaluation.main_metric, evaluation.scores, evaluation.targets
    if name == "accuracy":
        interval = accuracy_interval(scores, targets)
    else:
        interval = mean_average_precision_interval(scores, targets, num_resamples)
    return MetricEstimate(name, evaluation.main_value, *interval)


def compute_difference(new: Predictions, old: Predictions) -> MetricDifference:
    """Compare two evaluations on their common clips by the new evaluation's main metric.

    Raises MismatchError if they have no clip in common or differ in their classes.
    """
    name = new.evaluation.main_metric
    new, old = select_common_clips([new, old])
    measure = accuracy_change if name == "accuracy" else mean_average_precision_change
    return MetricDifference(name, *measure(old.scores, new.scores, new.targets), num_clips=len(new.keys))


def select_common_clips(evaluations: Sequence[Predictions]) -> list[Predictions]:
    """Reduce evaluations to their common clips, in equal order.

    Raises MismatchError if they have no clip in common or differ in their classes.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        if list(first.names) != list(other.names):
            same_number = len(first.names) == len(other.names)
            raise MismatchError(
                f"expected evaluations of the same classes, found {len(first.names)} and {len(other.names)}"
                f"{' with other names or in another order' if same_number else ''}; evaluate all models on one snapshot"
            )
    keys = functools.reduce(np.intersect1d, [each.keys for each in evaluations])
    if not len(keys):
        raise MismatchError("expected evaluations with common clips, found none; evaluate all models on one split")
    return [each.select(keys) for each in evaluations]
