"""Store the predictions of an evaluation as an `.npz` file, for plots, comparisons and intervals."""

import dataclasses
import io
import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ast_model.evaluation.clip_lists import Coverage
from ast_model.evaluation.evaluate import Evaluation
from ast_model.metrics import tagging_metrics
from pipeline.errors import CorruptError
from pipeline.labels import Labels
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import RunFiles
from pipeline.store.storage import Store

BEST, LAST, AVERAGE = "best", "last", "average"
"""Variants of a run's weights, from its best epoch, its last epoch or the average over epochs."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores and targets of the evaluated clips, with the clips' keys and the classes' names."""

    keys: np.ndarray
    """Keys (N,) of the clips."""
    mids: np.ndarray
    """AudioSet ids (C,) of the classes."""
    names: np.ndarray
    """Display names (C,) of the classes."""
    scores: np.ndarray
    """Scores (N, C)."""
    targets: np.ndarray
    """Multi-hot targets (N, C)."""
    num_train_clips: np.ndarray
    """Number of training clips (C,) per class."""
    epoch: int
    """Epoch after which the evaluated weights were saved; 0 for an ensemble."""
    clip_list: str = ""
    """Name of the list of evaluated clips; empty for all clips of the split."""
    num_listed: int = 0
    """Number of clips in the list, scored or not."""

    def select(self, keys: np.ndarray) -> "Predictions":
        """Return the predictions of the given clips, in the order of `keys`."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        rows = [row_of[key] for key in keys]
        return dataclasses.replace(self, keys=keys, scores=self.scores[rows], targets=self.targets[rows])

    @property
    def coverage(self) -> Coverage:
        return Coverage(self.clip_list, max(self.num_listed, len(self.keys)), len(self.keys))

    @property
    def clips_text(self) -> str:
        """The number of scored clips, with the share of their list."""
        if not self.clip_list:
            return f"{len(self.keys)} clips"
        return f"clips of {self.clip_list} ({self.coverage})"

    @property
    def labels(self) -> Labels:
        return Labels(tuple(self.mids.tolist()), tuple(self.names.tolist()))

    @cached_property
    def evaluation(self) -> Evaluation:
        return Evaluation(self.scores, self.targets, tagging_metrics(self.scores, self.targets))


def predictions_name(run: str, name: str) -> str:
    """Return the path of a run's predictions in the store. name: BEST, LAST or AVERAGE."""
    return RunFiles(run).evaluation(name)


def make_predictions(
    evaluation: Evaluation,
    snapshot: Snapshot,
    splits: tuple[tuple[str, ...], str],
    epoch: int,
    coverage: Coverage,
) -> Predictions:
    """Add the clips' keys and the classes to an evaluation.

    splits: the training splits and the evaluation split.
    """
    train_splits, eval_split = splits
    rows = snapshot.rows_of((eval_split,)) if evaluation.rows is None else evaluation.rows
    return Predictions(
        keys=np.asarray(snapshot.index["key"].take(rows).to_pylist()),
        mids=np.asarray(snapshot.labels.mids),
        names=np.asarray(snapshot.labels.names),
        scores=evaluation.scores,
        targets=evaluation.targets,
        num_train_clips=snapshot.class_counts(train_splits),
        epoch=epoch,
        clip_list=coverage.clip_list,
        num_listed=coverage.num_listed,
    )


def encode_predictions(predictions: Predictions) -> bytes:
    """Encode predictions as an `.npz` file with one array per field."""
    out = io.BytesIO()
    np.savez(out, **{field.name: getattr(predictions, field.name) for field in dataclasses.fields(predictions)})
    return out.getvalue()


def save_predictions(
    evaluation: Evaluation,
    snapshot: Snapshot,
    splits: tuple[tuple[str, ...], str],
    name: str,
    epoch: int,
    coverage: Coverage,
) -> None:
    """Write an evaluation's predictions to the store. splits: as in `make_predictions`."""
    predictions = make_predictions(evaluation, snapshot, splits, epoch, coverage)
    snapshot.store.write_bytes(name, encode_predictions(predictions))


def parse_predictions(data: bytes, where: str) -> Predictions:
    """Decode the output of `encode_predictions`. Raises CorruptError, with `where`, for invalid content."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            # The file stores scalars as arrays without axes.
            return Predictions(**{name: arrays[name] if arrays[name].ndim else arrays[name].item() for name in arrays})
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CorruptError(
            f"expected the predictions of an evaluation in {where}, found: {error}; evaluate again"
        ) from error


def load_predictions(store: Store, name: str) -> Predictions:
    return parse_predictions(store.read_bytes(name), store.url(name))
