"""Distillation from stored scores: the mean of one or more models' scores of the training clips.

Binary cross-entropy is linear in its targets. So a share of the teacher's scores in the targets is the same as that
share of a second loss against the teacher, and mixup mixes both as one.

Source: Schmid, Koutini and Widmer, "Efficient Large-Scale Audio ModelMetadata via Transformer-to-CNN Knowledge
Distillation", ICASSP 2023 (stored ensemble scores).
"""

import numpy as np

from ast_model.config import TrainConfig
from ast_model.data.loader import BatchReader
from ast_model.evaluation.predictions import load_predictions
from pipeline.errors import MismatchError
from pipeline.snapshots.snapshot import Snapshot


class DistillationBatchReader(BatchReader):
    """Makes batches whose targets are partly a teacher's scores."""

    def teach(self, scores: np.ndarray, share: float) -> None:
        """Learn from scores (N, C) of this collator's clips, in their order."""
        self._scores, self._share = scores, share

    def _targets(self, positions: np.ndarray) -> np.ndarray:
        targets_BC = super()._targets(positions) * (1 - self._share)
        return targets_BC + self._share * self._scores[positions].astype(np.float32)


def load_teacher(snapshot: Snapshot, rows: np.ndarray, config: TrainConfig) -> np.ndarray:
    """Return the teachers' mean scores (len(rows), C) float16 of some clips. A file may hold those of one split.

    Raises MismatchError if a teacher has other classes, or not all clips have scores of as many.
    """
    keys = np.asarray(snapshot.index["key"].take(rows).to_pylist())
    mean = np.zeros((len(keys), len(snapshot.labels)), np.float32)
    counts = np.zeros(len(keys), int)
    for name in config.teachers:
        scores = load_predictions(snapshot.store, name)
        if list(scores.mids) != list(snapshot.labels.mids):
            where = snapshot.store.url(name)
            raise MismatchError(f"expected in {where} the {len(snapshot.labels)} classes of the snapshot, found others")
        _, ours, theirs = np.intersect1d(keys, scores.keys, assume_unique=True, return_indices=True)
        mean[ours] += scores.scores[theirs]
        counts[ours] += 1
    if counts.min() != counts.max() or not counts.min():
        least = keys[counts.argmin()]
        raise MismatchError(
            f"expected in {', '.join(config.teachers)} scores of all {len(keys)} training clips, by as many teachers"
            f" each, found {counts.min()} to {counts.max()}; {least} has the fewest: evaluate each teacher on each of"
            " the training splits of this snapshot"
        )
    return (mean / counts[:, None]).astype(np.float16)
