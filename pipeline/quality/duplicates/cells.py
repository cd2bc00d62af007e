"""Cells of similar vectors. The anchors of two copies are in the same one, if not always the closest of both.

Anchors themselves are the centres: where there are many, there are many cells.
"""

# Letters: A anchors, V values of a vector, C cells.

from dataclasses import dataclass

import numpy as np

NUM_GROUPS, GROUP_CELLS = 512, 1024
"""Where there are more cells than the latter, an anchor is compared with the first of them, and then with the cells,
about as many, that are in the closest one's group."""
NUM_CELLS_OF_ANCHOR = 3
"""The closest; in one cell alone, copies would miss each other at its border."""
BLOCK_ANCHORS = 2**11
"""Compared with centres at a time."""


@dataclass(frozen=True)
class Cells:
    """Cells, and groups of them, by which those closest to a vector are found without a look at all."""

    centres_CV: np.ndarray
    groups: list[np.ndarray]
    """The cells of each: those around one of the first centres."""

    @classmethod
    def around(cls, centres_CV: np.ndarray) -> "Cells":
        """Make cells of centres in random order, since the first are those of groups, too."""
        if len(centres_CV) <= GROUP_CELLS:
            return cls(centres_CV, [np.arange(len(centres_CV))])
        # Each cell is in as many groups. If each group had as many cells, those in the middle would be in most groups,
        # and get most of the anchors.
        num_groups_of_cell = 1 + NUM_GROUPS * GROUP_CELLS // len(centres_CV)
        far_CG = -(centres_CV @ centres_CV[:NUM_GROUPS].T)
        group_of = np.argpartition(far_CG, num_groups_of_cell - 1, axis=1)[:, :num_groups_of_cell].ravel()
        order = np.argsort(group_of, kind="stable")
        ends = np.searchsorted(group_of[order], np.arange(1, NUM_GROUPS))
        return cls(centres_CV, np.split(order // num_groups_of_cell, ends))

    def closest(self, vectors_AV: np.ndarray) -> np.ndarray:
        """Return the cells (A, `NUM_CELLS_OF_ANCHOR`) whose centres are closest to vectors, or of many nearly so."""
        group_A = _closest(vectors_AV, self.centres_CV[: len(self.groups)], 1)[:, 0]
        closest = np.empty((len(vectors_AV), min(NUM_CELLS_OF_ANCHOR, len(self.centres_CV))), np.int32)
        for group, cells in enumerate(self.groups):
            members = np.flatnonzero(group_A == group)
            if len(cells) < closest.shape[1]:  # where centres are equal
                cells = np.arange(len(self.centres_CV))
            closest[members] = cells[_closest(vectors_AV[members], self.centres_CV[cells], closest.shape[1])]
        return closest


def _closest(vectors_AV: np.ndarray, centres_CV: np.ndarray, count: int) -> np.ndarray:
    """Return which centres (A, count) are closest to vectors, the closest first."""
    closest = np.empty((len(vectors_AV), count), np.int32)
    for start in range(0, len(vectors_AV), BLOCK_ANCHORS):
        near = vectors_AV[start : start + BLOCK_ANCHORS].astype(np.float32) @ centres_CV.T
        for column in range(count):
            closest[start : start + BLOCK_ANCHORS, column] = place = near.argmax(1)
            near[np.arange(len(near)), place] = -np.inf
    return closest
