"""Scores of a model over a split, each clip once on any number of ranks."""

import logging
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
    """Scores (N, C) and targets (N, C) of a split's clips in the order of the index, with their metrics."""

    scores: np.ndarray
    targets: np.ndarray
    metrics: TaggingMetrics
    rows: np.ndarray | None = None
    """(N,) rows of the snapshot's index, if the clips are a snapshot's."""

    @property
    def main_metric(self) -> str:
        """Name of the figure that matters most: accuracy where each clip has one class, else mAP."""
        return "accuracy" if (self.targets.sum(axis=1) == 1).all() else "mAP"

    @property
    def metrics_by_name(self) -> dict[str, float]:
        """Metrics by name, the main one first."""
        metrics = self.metrics
        figures = {"mAP": metrics.mAP, "auc": metrics.auc, "d_prime": metrics.d_prime}
        if self.main_metric == "accuracy":
            return {"accuracy": accuracy(self.scores, self.targets), **figures}
        return figures


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, for a while."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    clips: BatchReader,
    world: World,
    normalisation: Normalisation,
    batch_size: int,
    loss: Loss = "bce",
) -> Evaluation:
    """Score all clips of `clips`; every rank returns the same. `loss`: what the model was trained with.

    A clip whose scores are not finite is named and left out. Raises TrainingError if none is left.
    """
    clips.set_order(without_augmentation(np.arange(len(clips.rows))), is_grouped=False)
    targets = clips.targets.toarray().astype(bool)
    batches = split_evenly(len(clips.rows), world.rank, world.size, batch_size)
    parts = []
    # The precision is the device's, not the training's: so a model has the same figures while it is trained and later.
    with evaluation_mode(model), world.autocast("auto"):
        for batch in map_ahead(clips.read_clips, batches, num_threads=1):
            fbank_BTM = prepare(batch.to(world.device), normalisation.mean, normalisation.std)
            parts.append(scores_from_logits(model(fbank_BTM), loss))
        own = torch.cat(parts) if parts else torch.empty((0, targets.shape[1]), device=world.device)
        scores = world.gather_rows(own).numpy()
    is_finite = np.asarray(np.isfinite(scores).all(axis=1))
    if not is_finite.all():
        _name_left_out(clips, is_finite, world)
        scores, targets = scores[is_finite], targets[is_finite]
    return Evaluation(scores, targets, tagging_metrics(scores, targets), clips.rows[is_finite])


def _name_left_out(clips: BatchReader, is_finite: np.ndarray, world: World) -> None:
    rows = clips.rows[~is_finite]
    keys = ", ".join(clips.reader.key_of(row) for row in rows[:MAX_KEYS_SHOWN].tolist())
    shown = keys + (" …" if len(rows) > MAX_KEYS_SHOWN else "")
    if not is_finite.any():
        raise TrainingError(
            f"expected scores of {len(rows)} evaluation clips, found none that is finite ({shown}): the weights, or"
            " --train.mean and --train.std, are not those of a model that works"
        )
    if world.is_main:
        log.warning(
            "%d of %d evaluation clips left out, whose scores are not finite: %s", *(len(rows), len(clips.rows)), shown
        )
