"""A baseline for the user's own sounds: decision trees on statistics of the stored fbanks, scored on the same split.

The baseline is only a yardstick. A model that scores below it has learnt too little.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

from ast_model.config import TrainConfig
from ast_model.embeddings.statistics import read_fbank, spectral_statistics
from ast_model.evaluation.predictions import AVERAGE
from ast_model.metrics import tagging_metrics
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot

log = logging.getLogger(__name__)

NUM_TREES = 300
MAX_CLIPS = 5_000
"""Maximum number of training clips and of evaluation clips, so that a baseline takes at most about a minute."""


@dataclass(frozen=True)
class Baseline:
    """Scores of a baseline, named like the model's metrics, and the time it took."""

    metrics: dict[str, float]
    seconds: float

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in self.metrics.items()) + f" in {self.seconds:.1f} s"

    def tracked_metrics(self) -> dict[str, float]:
        """Return the scores by their names in MLflow."""
        return {f"baseline/{name}": value for name, value in self.metrics.items()}

    def compare(self, history: Sequence[Mapping[str, float]]) -> str:
        """Return a sentence that compares the model's best weights with the baseline, by accuracy if both have it."""
        scores = {
            metric: [epoch[name] for epoch in history for name in _names_of(metric) if name in epoch]
            for metric in ("accuracy", "mAP")
        }
        metric = "accuracy" if "accuracy" in self.metrics and scores["accuracy"] else "mAP"
        baseline, best = self.metrics[metric], max(scores[metric])
        line = f"{metric} {baseline:.4f} by decision trees on spectral statistics, {best:.4f} by the model"
        if baseline <= best:
            return line
        return (
            f"{line}: {baseline - best:.4f} below this simple baseline. More epochs or clips, or a start from a trained"
            " AST (--init), help"
        )


def _names_of(metric: str) -> tuple[str, str]:
    """Return the names of a metric in a history: of an epoch and of the averaged weights."""
    return f"eval/{metric}", f"eval/{AVERAGE}/{metric}"


def measure_baseline(snapshot: Snapshot, train: TrainConfig, known: dict[str, np.ndarray] | None = None) -> Baseline:
    """Fit decision trees to the training clips of a snapshot and score the evaluation split.

    known: statistics by clip from earlier folds, to which the new statistics are added.
    """
    started_s = time.monotonic()
    random = np.random.default_rng(train.seed)
    train_rows, eval_rows = (
        _sample(snapshot.rows_of(splits), random) for splits in (train.train_splits, (train.eval_split,))
    )
    known = {} if known is None else known
    features_NF, eval_features_NF = (_read_features(snapshot, rows, known) for rows in (train_rows, eval_rows))
    targets_NC, eval_targets_NC = (snapshot.targets(rows).toarray() for rows in (train_rows, eval_rows))
    scores_NC = fit_and_score(features_NF, targets_NC, eval_features_NF, train.seed)
    metrics = {"mAP": tagging_metrics(scores_NC, eval_targets_NC).mAP}
    if (eval_targets_NC.sum(axis=1) == 1).all():
        metrics["accuracy"] = float((scores_NC.argmax(axis=1) == eval_targets_NC.argmax(axis=1)).mean())
    baseline = Baseline(metrics, time.monotonic() - started_s)
    log.info("baseline: decision trees on spectral statistics reach %s", baseline)
    return baseline


def _sample(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return rows if len(rows) <= MAX_CLIPS else np.sort(random.choice(rows, MAX_CLIPS, replace=False))


def _read_features(snapshot: Snapshot, rows: np.ndarray, known: dict[str, np.ndarray]) -> np.ndarray:
    reader, keys = ClipReader(snapshot), snapshot.index["key"].take(rows).to_pylist()
    for row, key in zip(rows.tolist(), keys, strict=True):
        if key not in known:
            known[key] = spectral_statistics(read_fbank(reader, snapshot, row))
    return np.stack([known[key] for key in keys])


def fit_and_score(
    features_NF: np.ndarray, targets_NC: np.ndarray, eval_features_NF: np.ndarray, seed: int
) -> np.ndarray:
    """Return the trees' probabilities (N, C) for the evaluation clips."""
    trees = ExtraTreesClassifier(NUM_TREES, random_state=seed, n_jobs=-1)
    has_one_label = (targets_NC.sum(axis=1) == 1).all()
    scores_NC = np.zeros((len(eval_features_NF), targets_NC.shape[1]))
    if has_one_label:
        trees.fit(features_NF, targets_NC.argmax(axis=1))
        scores_NC[:, trees.classes_] = trees.predict_proba(eval_features_NF)
        return scores_NC
    # Skip classes that all or no training clips have, which scikit-learn can't predict.
    varying = np.flatnonzero(np.ptp(targets_NC, axis=0) > 0)
    if len(varying) == 1:
        trees.fit(features_NF, targets_NC[:, varying[0]])
        scores_NC[:, varying[0]] = np.asarray(trees.predict_proba(eval_features_NF))[:, 1]
    elif len(varying):
        trees.fit(features_NF, targets_NC[:, varying])
        scores_NC[:, varying] = np.asarray(trees.predict_proba(eval_features_NF))[:, :, 1].T
    return scores_NC
