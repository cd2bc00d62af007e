"""Paired comparison of two evaluations: the change in mAP on their common clips, with its interval."""

from dataclasses import dataclass

import numpy as np

from ast_model.evaluation.predictions import Predictions
from ast_model.metrics import mean_average_precision_change
from pipeline.errors import MismatchError


@dataclass(frozen=True)
class MapDifference:
    """Change in mAP from one model to another, with its 95 % interval."""

    value: float
    low: float
    high: float
    num_clips: int
    """Number of clips that both models were evaluated on."""

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}] on {self.num_clips} clips"


def compute_map_difference(new: Predictions, old: Predictions) -> MapDifference:
    """Compare two evaluations on their common clips.

    Raises MismatchError if they have no clip in common or differ in their classes.
    """
    new, old = select_common_clips(new, old)
    change = mean_average_precision_change(old.scores, new.scores, old.targets)
    return MapDifference(*change, num_clips=len(new.keys))


def select_common_clips(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Reduce both evaluations to their common clips, in equal order.

    Raises MismatchError if they have no clip in common or differ in their classes.
    """
    if list(first.names) != list(second.names):
        same_number = len(first.names) == len(second.names)
        raise MismatchError(
            f"expected two evaluations of the same classes, found {len(first.names)} and {len(second.names)}"
            f"{' with other names or in another order' if same_number else ''}; evaluate both models on one snapshot"
        )
    keys = np.intersect1d(first.keys, second.keys)
    if not len(keys):
        raise MismatchError("expected two evaluations with common clips, found none; evaluate both models on one split")
    return first.select(keys), second.select(keys)
