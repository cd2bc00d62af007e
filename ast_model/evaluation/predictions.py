"""Predictions of an evaluation: what pictures, comparisons and intervals are made of."""

import dataclasses
import io
import zipfile
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ast_model.evaluation.evaluate import Evaluation
from ast_model.metrics import tagging_metrics
from pipeline.errors import CorruptError, MismatchError
from pipeline.labels import Labels
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

BEST, LAST, AVERAGE = "best", "last", "average"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores (N, C) and targets (N, C) of clips, by key (N,) and by class (C,)."""

    keys: np.ndarray
    mids: np.ndarray
    names: np.ndarray
    scores: np.ndarray
    targets: np.ndarray
    num_train_clips: np.ndarray
    """(C,) clips that were trained on."""
    epoch: int

    def among(self, keys: np.ndarray) -> "Predictions":
        """Take the clips of some keys, in their order."""
        row_of = {key: row for row, key in enumerate(self.keys)}
        rows = [row_of[key] for key in keys]
        return dataclasses.replace(self, keys=keys, scores=self.scores[rows], targets=self.targets[rows])

    @property
    def labels(self) -> Labels:
        return Labels(tuple(self.mids.tolist()), tuple(self.names.tolist()))

    @cached_property
    def evaluation(self) -> Evaluation:
        return Evaluation(self.scores, self.targets, tagging_metrics(self.scores, self.targets))


def predictions_name(run: str, name: str) -> str:
    """Return where a run keeps the scores of an evaluation."""
    return f"runs/{run}/evaluations/{name}.npz"


def make_predictions(
    evaluation: Evaluation, snapshot: Snapshot, splits: tuple[tuple[str, ...], str], epoch: int
) -> Predictions:
    """Give an evaluation the keys and classes of its clips; `splits` are those of training and evaluation."""
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
    )


def encode_predictions(predictions: Predictions) -> bytes:
    """Return the content of an `.npz` file, an array per field."""
    out = io.BytesIO()
    np.savez(out, **{field.name: getattr(predictions, field.name) for field in dataclasses.fields(predictions)})
    return out.getvalue()


def save_predictions(
    evaluation: Evaluation, snapshot: Snapshot, splits: tuple[tuple[str, ...], str], name: str, epoch: int
) -> None:
    """Write an evaluation's predictions to the store; `splits` are those of training and evaluation."""
    snapshot.store.write_bytes(name, encode_predictions(make_predictions(evaluation, snapshot, splits, epoch)))


def parse_predictions(data: bytes, where: str) -> Predictions:
    """Read what `encode_predictions` returned. Raises CorruptError."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return Predictions(
                **{name: arrays[name] for name in arrays.files if name != "epoch"}, epoch=int(arrays["epoch"])
            )
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CorruptError(f"{where} holds no scores of an evaluation: {error}; evaluate again") from error


def load_predictions(store: Store, name: str) -> Predictions:
    return parse_predictions(store.read_bytes(name), store.url(name))


def select_common_clips(first: Predictions, second: Predictions) -> tuple[Predictions, Predictions]:
    """Cut both to the clips that both have. Raises MismatchError if there are none, or the classes differ."""
    if list(first.names) != list(second.names):
        raise MismatchError(
            f"expected two evaluations of the same classes, found {len(first.names)} and {len(second.names)}"
            + (" of other names or order" if len(first.names) == len(second.names) else "")
            + "; they can't be compared clip by clip"
        )
    keys = np.intersect1d(first.keys, second.keys)
    if not len(keys):
        raise MismatchError("the two evaluations have no clip in common; they can't be compared clip by clip")
    return first.among(keys), second.among(keys)
