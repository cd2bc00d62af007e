"""Score checkpoints one after the other, and average their scores."""

from collections.abc import Iterator, Sequence

import torch

from ast_model.config import CacheConfig
from ast_model.data.loader import BatchReader, open_reader
from ast_model.distributed import join_world
from ast_model.evaluation.evaluate import Evaluation, Normalisation, evaluate
from ast_model.pretrained.files import read_weights
from ast_model.pretrained.load import fit_weights
from ast_model.pretrained.metadata import read_metadata
from pipeline.snapshots.snapshot import Snapshot


def score_each(
    checkpoints: Sequence[str], snapshot: Snapshot, split: str, batch_size: int
) -> Iterator[tuple[str, Evaluation]]:
    """Yield each checkpoint's name and its scores on a split.

    Raises MismatchError if the classes of a checkpoint are not the snapshot's, in order.
    """
    rows = snapshot.rows_of((split,))
    targets, reader = snapshot.targets(rows), open_reader(snapshot, CacheConfig())
    with join_world() as world:
        for source in checkpoints:
            file = read_weights(source)
            model = fit_weights(file, source)
            metadata = read_metadata(file, model.config.num_classes, snapshot.labels)
            clips = BatchReader(reader, rows, targets, model.config.num_frames)
            norm = Normalisation(metadata.mean, metadata.std)
            yield source, evaluate(model.to(world.device), clips, world, norm, batch_size, metadata.loss)
            del model
            torch.cuda.empty_cache()
