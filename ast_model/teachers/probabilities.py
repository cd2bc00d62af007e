"""Whatever a file holds → probabilities of a snapshot's classes."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import expit

from ast_model.teachers.score_files import Block, ScoreFile
from pipeline.errors import InputError, MismatchError, quote
from pipeline.labels import Labels

LOGITS, PROBABILITIES = "logits", "probabilities"
ROUNDING = 1e-3
"""How far a probability may be outside of 0 to 1: half precision and means of it round."""
OTHER_SETS = {521: "YAMNet's classes", 632: "the whole ontology of AudioSet"}


def find_columns(files: Sequence[ScoreFile], labels: Labels, columns: Labels | None) -> np.ndarray:
    """Return which of the files' columns each class (C,) is. columns: their classes, where the files don't say them.

    Raises MismatchError if a class has no column, or the columns' classes are not known.
    """
    first = files[0]
    mids = first.mids or (columns.mids if columns else ())
    num_found = first.num_classes or len(mids) or len(labels)
    if mids and num_found != len(mids):
        raise MismatchError(f"expected in --labels the {num_found} classes of {first.where}, found {len(mids)}")
    if not mids and num_found != len(labels):
        what = f": {OTHER_SETS[num_found]}?" if num_found in OTHER_SETS else ""
        raise MismatchError(
            f"expected {len(labels)} classes in {first.where}, as the snapshot has, found {num_found}{what} Give their"
            " mids in the columns' order, as a class_labels_indices.csv, as --labels"
        )
    for file in files[1:]:
        if (file.num_classes, file.mids) != (first.num_classes, first.mids):
            raise MismatchError(
                f"expected the classes of {first.where} ({first.num_classes}) also in {file.where}, found different"
                f" classes ({file.num_classes})"
            )
    if not mids:
        return np.arange(num_found)
    column_of = {mid: column for column, mid in enumerate(mids)}
    if missing := [name for mid, name in zip(labels.mids, labels.names, strict=True) if mid not in column_of]:
        raise MismatchError(
            f"expected a column for each class of the snapshot in {first.where}, found none for {len(missing)}:"
            f" {quote(', '.join(missing))}; a teacher that never heard of a class would teach that it is absent"
        )
    return np.array([column_of[mid] for mid in labels.mids])


def find_kind(files: Sequence[ScoreFile]) -> str:
    """Tell logits from probabilities by the first values: a logit is outside of 0 to 1 sooner or later."""
    values = next(iter(files[0].blocks()), Block(np.empty((0, 1)))).values
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return PROBABILITIES
    if high <= 0 and files[0].num_classes:
        raise InputError(
            f"expected logits or probabilities in {files[0].where}, found values of {low:.3g} to {high:.3g}, none above"
            " 0: logarithms of probabilities? Store the probabilities"
        )
    return LOGITS


def read_probabilities(file: ScoreFile, kind: str, columns: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the probabilities (n, C) float32 of a file's rows, `columns` of those it has.

    Raises InputError, naming the row and its clip, for a value that is not finite, or no probability among such.
    """
    num_columns = file.num_classes or int(columns.max()) + 1
    start = 0
    for block in file.blocks():
        values = block.values.astype(np.float32)
        is_wrong = ~np.isfinite(values)
        if kind == PROBABILITIES:
            is_wrong |= (values < -ROUNDING) | (values > 1 + ROUNDING)
        if is_wrong.any():
            row, column = np.argwhere(is_wrong)[0]
            raise InputError(
                f"expected {kind} in {file.where}, as its first rows have, found {values[row, column]} in row"
                f" {start + row}, of {quote(file.ids[int(start + row)])}"
            )
        probs = expit(values) if kind == LOGITS else values.clip(0, 1)
        if block.classes is not None:
            probs = _spread(probs, block.classes, num_columns, file.where)
        yield probs[:, columns]
        start += len(values)
    if start != len(file.ids):
        raise InputError(f"expected {len(file.ids)} rows in {file.where}, as it has ids, found {start}")


def _spread(probs: np.ndarray, classes: np.ndarray, num_columns: int, where: str) -> np.ndarray:
    """Put each row's k values to their classes; the others share what is at most the least of them, as CED has it."""
    if classes.shape != probs.shape or classes.min(initial=0) < 0 or classes.max(initial=0) >= num_columns:
        raise InputError(
            f"expected in {where} a class from 0 to {num_columns - 1} for each value, found {classes.min(initial=0)} to"
            f" {classes.max(initial=0)} in {classes.shape} for {probs.shape}"
        )
    least = probs.min(axis=1, keepdims=True) / max(1, num_columns - probs.shape[1])
    spread = np.broadcast_to(least, (len(probs), num_columns)).copy()
    np.put_along_axis(spread, classes.astype(np.int64), probs, axis=1)
    return spread
