"""Convert published scores to probabilities of a snapshot's classes."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import expit

from ast_model.teachers.score_files import ScoreFile
from pipeline.errors import InputError, MismatchError, quote
from pipeline.labels import Labels

LOGITS, PROBABILITIES = "logits", "probabilities"
ROUNDING = 1e-3
"""Tolerance for probabilities outside of [0, 1], which rounding to half precision can cause."""
OTHER_SETS = {521: "YAMNet's classes", 632: "the whole ontology of AudioSet"}
"""Names of well-known sets of classes by their size, for error messages."""


def find_columns(files: Sequence[ScoreFile], labels: Labels, columns: Labels | None) -> np.ndarray:
    """Return the score column (C,) of each class.

    columns: class of each column of the files; default: the snapshot's classes.
    Raises MismatchError if a class has no column, or if the number of columns does not fit.
    """
    first = files[0]
    if columns and first.num_classes != len(columns):
        raise MismatchError(
            f"expected in --labels the {first.num_classes} classes of {first.where}, found {len(columns)}"
        )
    if not columns and first.num_classes != len(labels):
        known = OTHER_SETS.get(first.num_classes)
        raise MismatchError(
            f"expected {len(labels)} classes in {first.where}, like the snapshot, found {first.num_classes}"
            f"{f': {known}?' if known else '.'} Name the columns' classes with --labels, a class_labels_indices.csv"
        )
    for file in files[1:]:
        if file.num_classes != first.num_classes:
            raise MismatchError(
                f"expected {first.num_classes} classes in {file.where}, as in {first.where}, found {file.num_classes}"
            )
    if not columns:
        return np.arange(first.num_classes)
    column_of = {mid: column for column, mid in enumerate(columns.mids)}
    if missing := [name for mid, name in zip(labels.mids, labels.names, strict=True) if mid not in column_of]:
        raise MismatchError(
            f"expected a column in {first.where} for each class of the snapshot, found none for {len(missing)}:"
            f" {quote(', '.join(missing))}; the scores can't be used, because models would learn that these classes"
            " never occur"
        )
    return np.array([column_of[mid] for mid in labels.mids])


def find_kind(files: Sequence[ScoreFile]) -> str:
    """Tell logits from probabilities by the first block. Logits leave [0, 1] within a few thousand rows."""
    values = next(iter(files[0].read_blocks()), np.empty((0, 1)))
    low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return PROBABILITIES
    if high <= 0:
        raise InputError(
            f"expected logits or probabilities in {files[0].where}, found only negative values from {low:.3g} to"
            f" {high:.3g}. If these are logarithms of probabilities, store the probabilities"
        )
    return LOGITS


def read_probabilities(file: ScoreFile, kind: str, columns: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the probabilities (n, C) float32 of a file's rows. `columns` selects and orders the columns.

    Raises InputError, with the row and its clip, for non-finite values and for probabilities outside of [0, 1].
    """
    start = 0
    for block in file.read_blocks():
        values = block.astype(np.float32)
        is_wrong = ~np.isfinite(values)
        if kind == PROBABILITIES:
            is_wrong |= (values < -ROUNDING) | (values > 1 + ROUNDING)
        if is_wrong.any():
            row, column = np.argwhere(is_wrong)[0]
            raise InputError(
                f"expected {kind} in {file.where}, as in its first rows, found {values[row, column]} in row"
                f" {start + row}, clip {quote(file.ids[int(start + row)])}"
            )
        probs = expit(values) if kind == LOGITS else values.clip(0, 1)
        yield probs[:, columns]
        start += len(values)
    if start != len(file.ids):
        raise InputError(f"expected {len(file.ids)} rows in {file.where}, one per id, found {start}")
