"""Read class labels from `class_labels_indices.csv`, and convert labels to multi-hot targets."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, cast

import fsspec
import numpy as np

from pipeline.errors import InputError, describe, describe_storage_error, quote

HEADER = ["index", "mid", "display_name"]
NO_LABEL = "/none"
"""Label of a segment that belongs to no class and is a negative example. AudioSet has no such segments."""


@dataclass(frozen=True)
class Labels:
    """The classes, in the order of the model's outputs."""

    mids: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.mids)

    @cached_property
    def index_of(self) -> dict[str, int]:
        return {mid: index for index, mid in enumerate(self.mids)}

    def multi_hot(self, indices: Sequence[Sequence[int]]) -> np.ndarray:
        """Convert each clip's class indices to bool targets (N, C)."""
        targets = np.zeros((len(indices), len(self)), dtype=bool)
        for row, classes in enumerate(indices):
            targets[row, np.asarray(classes, dtype=np.int64)] = True
        return targets

    def to_csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
        writer.writerow(HEADER)
        writer.writerows(
            (index, mid, name) for index, (mid, name) in enumerate(zip(self.mids, self.names, strict=True))
        )
        return out.getvalue()


def read_labels(path: str) -> Labels:
    """Read a `class_labels_indices.csv` from a path or address. Raises InputError if it can't be read."""
    try:
        with fsspec.open(path, "rb") as file:
            text = cast(BinaryIO, file).read().decode("utf-8-sig")
    except Exception as error:  # every storage library raises its own errors
        raise InputError(f"can't read the labels {path}: {describe_storage_error(error)}") from error
    return parse_labels(text, str(path))


def parse_labels(text: str, where: str) -> Labels:
    """Parse the text of a `class_labels_indices.csv`. Errors refer to the file as `where`."""
    try:
        rows = [row for row in csv.reader(io.StringIO(text)) if row]
    except csv.Error as error:  # for example, an unclosed quote makes a field exceed csv's limit
        raise InputError(f"{where}: expected CSV, found {describe(error)}") from error
    if not rows or [cell.strip() for cell in rows[0]] != HEADER:
        found = ",".join(rows[0]) if rows else "nothing"
        raise InputError(f"{where}: expected the header {','.join(HEADER)}, found {quote(found)}")
    mids: list[str] = []
    names: list[str] = []
    for position, row in enumerate(rows[1:]):
        if len(row) != 3 or row[0].strip() != str(position):
            raise InputError(f"{where}: expected index {position}, mid and display name, found {quote(','.join(row))}")
        mids.append(row[1].strip())
        names.append(row[2].strip())
    if not mids:
        raise InputError(f"{where}: expected at least one class, found none")
    if len(set(mids)) != len(mids):
        twice = sorted(mid for mid, count in Counter(mids).items() if count > 1)
        raise InputError(f"{where}: expected each mid once, found several times: {quote(', '.join(twice))}")
    return Labels(tuple(mids), tuple(names))
