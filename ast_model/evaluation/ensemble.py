"""Score several checkpoints on a split, and average their scores."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from ast_model.config import CacheConfig, Loss
from ast_model.data.augment import Normalisation
from ast_model.data.loader import BatchReader, open_reader
from ast_model.distributed import join_world
from ast_model.evaluation.clip_lists import find_listed_clips
from ast_model.evaluation.evaluate import Evaluation, evaluate
from ast_model.metrics import tagging_metrics
from ast_model.model import AST
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.metadata import ModelMetadata, check_labels, find_labels, read_metadata
from ast_model.pretrained.weight_files import read_weights
from pipeline.errors import TrainingError
from pipeline.labels import Labels
from pipeline.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class EnsembleMember:
    """An evaluated checkpoint of an ensemble."""

    checkpoint: str
    evaluation: Evaluation
    """Evaluation of this checkpoint alone."""
    ensemble: Evaluation
    """Evaluation of the mean scores of this and all previous checkpoints."""
    loss: Loss
    """Loss with which the checkpoint was trained."""


def score_checkpoints(
    checkpoints: Sequence[str], snapshot: Snapshot, split: str, batch_size: int, clip_list: str = ""
) -> Iterator[EnsembleMember]:
    """Score each checkpoint on a split or a list of its clips. The last member's `ensemble` covers all.

    Classes are matched by name. Raises MismatchError if the classes of a checkpoint and the snapshot differ,
    TrainingError if a batch exceeds the GPU's memory.
    """
    rows, _ = find_listed_clips(snapshot, split, clip_list)
    targets, reader = snapshot.targets(rows), open_reader(snapshot, CacheConfig())
    mean = None
    with join_world("cuda" if torch.cuda.is_available() else "cpu") as world:
        for number, source in enumerate(checkpoints, start=1):
            model, metadata = load_for_classes(source, snapshot.labels)
            clips = BatchReader(reader, rows, targets, model.config.num_frames)
            norm = Normalisation(metadata.mean, metadata.std)
            with _suggest_smaller_batch(batch_size):
                evaluation = evaluate(model.to(world.device), clips, world, norm, batch_size, metadata.loss)
            mean = _add_to_mean(mean, evaluation, number) if mean else evaluation
            yield EnsembleMember(source, evaluation, mean, metadata.loss)
            # Free the memory, so that only one model of the ensemble is on the GPU.
            del model
            torch.cuda.empty_cache()


@contextmanager
def _suggest_smaller_batch(batch_size: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        advice = f"try --batch-size {batch_size // 2}" if batch_size > 1 else "there is no smaller one"
        raise TrainingError(f"out of memory with --batch-size {batch_size}; {advice}") from error


def load_for_classes(source: str, labels: Labels) -> tuple[AST, ModelMetadata]:
    """Load a checkpoint with its classes in the order of `labels`, which also stand in for missing names."""
    file = read_weights(source)
    model = fit_weights(file, source)
    found = find_labels(file, model.config)
    metadata = read_metadata(file, model.config, None if found else labels)
    if sorted(found) == sorted(labels.names) and found != labels.names:
        return fit_weights(file, source, labels=labels.names), metadata
    check_labels(labels.names, metadata.labels, "the checkpoint", "the snapshot")
    return model, metadata


def _add_to_mean(mean: Evaluation, evaluation: Evaluation, number: int) -> Evaluation:
    """Update the mean of `number - 1` evaluations with one more, on their common clips."""
    assert mean.rows is not None, "expected an evaluation of a snapshot"
    assert evaluation.rows is not None, "expected an evaluation of a snapshot"
    rows, ours, theirs = np.intersect1d(mean.rows, evaluation.rows, assume_unique=True, return_indices=True)
    scores = mean.scores[ours] + (evaluation.scores[theirs] - mean.scores[ours]) / number
    targets = evaluation.targets[theirs]
    return Evaluation(scores, targets, tagging_metrics(scores, targets), rows)
