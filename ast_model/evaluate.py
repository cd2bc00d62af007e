"""Scores of a model over a split, each clip once on any number of ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ast_model.augment import prepare
from ast_model.loader import Collator, read_ahead, split_evenly, undrawn
from ast_model.metrics import TaggingMetrics, tagging_metrics
from ast_model.world import World


@dataclass(frozen=True)
class Normalisation:
    """What fbanks are normalised with before the model sees them."""

    mean: float
    std: float


@dataclass(frozen=True)
class Evaluation:
    """Scores (N, C) and targets (N, C) of a split's clips in the order of the index, with their metrics."""

    scores: np.ndarray
    targets: np.ndarray
    metrics: TaggingMetrics


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, for a while."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module, clips: Collator, world: World, normalisation: Normalisation, batch_size: int
) -> Evaluation:
    """Score all clips of `clips`; every rank returns the same."""
    clips.expect(undrawn(np.arange(len(clips.rows))), is_grouped=False)
    works = split_evenly(len(clips.rows), world.rank, world.size, batch_size)
    parts = []
    with evaluating(model):
        for batch in read_ahead(clips.plain, works, num_threads=1):
            fbank_BTM = prepare(batch.to(world.device), normalisation.mean, normalisation.std)
            parts.append(torch.sigmoid(model(fbank_BTM).float()))
        own = torch.cat(parts) if parts else torch.empty((0, clips.targets.shape[1]), device=world.device)
        scores = world.gather_rows(own).numpy()
    targets = clips.targets.toarray().astype(bool)
    return Evaluation(scores, targets, tagging_metrics(scores, targets))
