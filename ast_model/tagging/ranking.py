"""Rank classes by score, and collect a recording's tags.

Axis: C classes.
"""

import difflib
from array import array
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ast_model.evaluation.calibration import Calibration
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.scorer import WindowScorer
from ast_model.tagging.tables import COLUMNS
from pipeline.errors import InputError, quote


def rank_classes(scores_C: np.ndarray, top_k: int, thresholds_C: np.ndarray | None = None) -> np.ndarray:
    """Return up to `top_k` classes that reach their thresholds, best first. Ties keep the order of classes."""
    ranked = np.argsort(-scores_C, kind="stable")
    if thresholds_C is not None:
        ranked = ranked[scores_C[ranked] >= thresholds_C[ranked]]
    return ranked[:top_k]


def class_thresholds(
    labels: Sequence[str], options: TaggingOptions, calibration: Calibration | None = None
) -> np.ndarray:
    """Return each class's minimum score (C,), infinite for excluded classes. Raises InputError for unknown classes."""
    for name in options.classes:
        if name not in labels:
            close = difflib.get_close_matches(name, labels, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f", such as {labels[0]!r}"
            raise InputError(f"expected a class of the model, found {quote(name)}{hint}")
    calibrated_C = np.zeros(len(labels)) if calibration is None else np.asarray(calibration.thresholds)
    thresholds_C = np.maximum(calibrated_C, options.threshold)
    if options.classes:
        thresholds_C[[label not in options.classes for label in labels]] = np.inf
    return thresholds_C


class TagCollector:
    """Ranks the scores of one recording's windows and collects the tags."""

    def __init__(self, scorer: WindowScorer, options: TaggingOptions):
        self.scorer, self.top_k = scorer, options.top_k
        self.thresholds_C = class_thresholds(scorer.labels, options, scorer.calibration)
        # Use flat arrays. One object per window would fragment the memory between the model's large buffers, and cost
        # hundreds of MB per hour of sound.
        self._starts_s, self._classes, self._scores = array("d"), array("q"), array("f")

    def add(self, start_s: float, scores_C: np.ndarray) -> None:
        """Add the best classes of a window, from uncalibrated scores."""
        calibrated_C = self.scorer.calibrate(scores_C[None])[0]
        best = rank_classes(calibrated_C, self.top_k, self.thresholds_C)
        self._starts_s.extend([start_s] * len(best))
        self._classes.extend(best.tolist())
        self._scores.extend(calibrated_C[best].tolist())

    def to_table(self, name: str, window_s: float, length_s: float) -> pd.DataFrame:
        """Return the tags as rows of `COLUMNS`. Intervals last `window_s` and end no later than `length_s`."""
        starts_s = np.array(self._starts_s)
        columns = {
            "file": [name] * len(starts_s),
            "start_s": starts_s,
            "end_s": np.minimum(starts_s + window_s, length_s),
            "label": [self.scorer.labels[number] for number in self._classes],
            "score": np.array(self._scores, dtype=float),
        }
        return pd.DataFrame(columns, columns=pd.Index(COLUMNS))
