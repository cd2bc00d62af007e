"""Score a model on a split, each clip exactly once on any number of ranks."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ast_model.config import Loss
from ast_model.data.augment import Normalisation, prepare
from ast_model.data.loader import BatchReader, split_evenly, without_augmentation
from ast_model.distributed import World
from ast_model.losses import scores_from_logits
from ast_model.metrics import TaggingMetrics, accuracy, tagging_metrics
from pipeline.ahead import map_ahead
from pipeline.errors import TrainingError

log = logging.getLogger(__name__)

MAX_KEYS_SHOWN = 10


@dataclass(frozen=True)
class Evaluation:
    """Scores, targets and metrics of the evaluated clips."""

    scores: np.ndarray
    """Scores (N, C)."""
    targets: np.ndarray
    """Multi-hot targets (N, C)."""
    metrics: TaggingMetrics
    rows: np.ndarray | None = None
    """Rows (N,) of the clips in the snapshot's index; None for predictions loaded from a file."""

    @property
    def main_metric(self) -> str:
        """The metric that selects the best epoch: accuracy if each clip has exactly one class, else mAP."""
        return "accuracy" if (self.targets.sum(axis=1) == 1).all() else "mAP"

    @property
    def main_value(self) -> float:
        return self.metrics_by_name[self.main_metric]

    @property
    def metrics_by_name(self) -> dict[str, float]:
        """Metrics by name, the main metric first. Omits undefined metrics, such as the AUC without negatives."""
        values = {"mAP": self.metrics.mAP, "auc": self.metrics.auc, "d_prime": self.metrics.d_prime}
        if self.main_metric == "accuracy":
            values = {"accuracy": accuracy(self.scores, self.targets), **values}
        return {name: value for name, value in values.items() if math.isfinite(value)}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode without gradients, and restore its mode on exit."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def score_clips(
    model: nn.Module,
    clips: BatchReader,
    world: World,
    normalisation: Normalisation,
    batch_size: int,
    loss: Loss = "bce",
) -> np.ndarray:
    """Return the scores (N, C) of all clips of `clips`, which may be non-finite. Arguments as in `evaluate`."""
    clips.set_order(without_augmentation(np.arange(len(clips.rows))), is_grouped=False)
    batches = split_evenly(len(clips.rows), world.rank, world.size, batch_size)
    parts = []
    # Use the device's default precision instead of the training's, so that metrics do not depend on training settings.
    with evaluation_mode(model), world.autocast("auto"):
        for batch in map_ahead(clips.read_clips, batches, num_threads=1):
            fbank_BTM = prepare(batch.to(world.device), normalisation.mean, normalisation.std)
            parts.append(scores_from_logits(model(fbank_BTM), loss))
        own = torch.cat(parts) if parts else torch.empty(clips.targets[:0].toarray().shape, device=world.device)
        return world.gather_rows(own).numpy()


def evaluate(
    model: nn.Module,
    clips: BatchReader,
    world: World,
    normalisation: Normalisation,
    batch_size: int,
    loss: Loss = "bce",
) -> Evaluation:
    """Score all `clips`. All ranks return the same evaluation.

    loss: loss with which the model was trained. It determines the activation.
    Clips with non-finite scores are excluded with a warning. Raises TrainingError if no finite scores remain.
    """
    targets = clips.targets.toarray().astype(bool)
    scores = score_clips(model, clips, world, normalisation, batch_size, loss)
    is_finite = np.asarray(np.isfinite(scores).all(axis=1))
    if not is_finite.all():
        _report_excluded(clips, is_finite, world)
        scores, targets = scores[is_finite], targets[is_finite]
    return Evaluation(scores, targets, tagging_metrics(scores, targets), clips.rows[is_finite])


def _report_excluded(clips: BatchReader, is_finite: np.ndarray, world: World) -> None:
    rows = clips.rows[~is_finite]
    keys = ", ".join(clips.reader.key_of(row) for row in rows[:MAX_KEYS_SHOWN].tolist())
    shown = keys + (" …" if len(rows) > MAX_KEYS_SHOWN else "")
    if not is_finite.any():
        raise TrainingError(
            f"expected finite scores of {len(rows)} evaluation clips, found none ({shown}): check the weights,"
            " --train.mean and --train.std"
        )
    if world.is_main:
        log.warning(
            "excluded %d of %d evaluation clips with non-finite scores: %s", *(len(rows), len(clips.rows)), shown
        )
