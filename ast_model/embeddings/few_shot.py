"""Expectations from few examples: heads fitted to some clips of each class, measured on the same held-out clips.

Letters: N clips, D embedding size, C classes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ast_model.config import TrainConfig
from ast_model.embeddings.head import fit_head, score_head

FEW_SHOT_PENALTY = 0.01
MIN_CROSS_VALIDATED = 5
"""Clips per class below which there are too few to cross-validate a penalty with."""
NUM_DRAWS = 5

Examples = tuple[np.ndarray, np.ndarray]
"""Embeddings (N, D) and targets (N, C)."""


def measure_few_shots(train: Examples, evaluation: Examples, config: TrainConfig, shots: Sequence[int]) -> pd.DataFrame:
    """Return a row for each number of clips per class: mean and range of the score over draws of the clips.

    A class that has fewer clips gives all of them. The score is the accuracy for one label per clip, else mAP.
    """
    train_ND, train_NC = train
    eval_ND, eval_NC = evaluation
    rng = np.random.default_rng(config.seed)
    rows = []
    for num_shots in shots:
        scores, num_clips = [], []
        for _ in range(NUM_DRAWS):
            chosen = _draw(train_NC, num_shots, rng)
            penalty = None if num_shots >= MIN_CROSS_VALIDATED else FEW_SHOT_PENALTY
            head = fit_head(train_ND[chosen], train_NC[chosen], config.loss, penalty=penalty)
            scores.append(score_head(head.logits(eval_ND), eval_NC, config.loss))
            num_clips.append(len(chosen))
        rows.append((num_shots, round(np.mean(num_clips)), np.mean(scores), min(scores), max(scores)))
    return pd.DataFrame(rows, columns=pd.Index(["per class", "clips", "mean", "lowest", "highest"])).round(4)


def _draw(targets_NC: np.ndarray, num_shots: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to so many clips of each class; a clip of several classes counts once."""
    of_class = [np.flatnonzero(column) for column in targets_NC.T]
    drawn = [rng.choice(rows, min(num_shots, len(rows)), replace=False) for rows in of_class]
    return np.unique(np.concatenate(drawn))
