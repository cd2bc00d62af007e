"""Group vectors into cells of similar vectors.

The anchors of two copies have a cell in common, although it may not be the closest cell of both. The centres of cells
are randomly chosen anchors, so dense regions have many cells.
"""

# Letters: A anchors, V values of a vector, C cells.

from dataclasses import dataclass

import numpy as np

NUM_GROUPS, GROUP_CELLS = 512, 1024
"""Number of groups, and approximate number of cells per group. If there are more than `GROUP_CELLS` cells, each anchor
is first compared with the centres of the groups, and then with the cells of the closest group."""
NUM_CELLS_OF_ANCHOR = 3
"""Number of cells that each anchor belongs to. With a single cell, copies near its border would not be found."""
BLOCK_ANCHORS = 2**11
"""Number of anchors per batch when they are compared with centres."""


@dataclass(frozen=True)
class Cells:
    """Cells, arranged in groups so that a search for the closest cells can skip most of them."""

    centres_CV: np.ndarray
    groups: list[np.ndarray]
    """The cells in each group. A group consists of cells around one of the first centres."""

    @classmethod
    def around(cls, centres_CV: np.ndarray) -> "Cells":
        """Create cells around centres, which are in random order. The first centres are also the centres of the
        groups."""
        if len(centres_CV) <= GROUP_CELLS:
            return cls(centres_CV, [np.arange(len(centres_CV))])
        # Put every cell into the same number of groups. If every group had the same number of cells instead, central
        # cells would be in most groups and attract most anchors.
        num_groups_of_cell = 1 + NUM_GROUPS * GROUP_CELLS // len(centres_CV)
        far_CG = -(centres_CV @ centres_CV[:NUM_GROUPS].T)
        group_of = np.argpartition(far_CG, num_groups_of_cell - 1, axis=1)[:, :num_groups_of_cell].ravel()
        order = np.argsort(group_of, kind="stable")
        ends = np.searchsorted(group_of[order], np.arange(1, NUM_GROUPS))
        return cls(centres_CV, np.split(order // num_groups_of_cell, ends))

    def closest(self, vectors_AV: np.ndarray) -> np.ndarray:
        """Return the cells (A, `NUM_CELLS_OF_ANCHOR`) that are closest to each vector. The result is approximate if
        there are many cells."""
        group_A = _closest(vectors_AV, self.centres_CV[: len(self.groups)], 1)[:, 0]
        closest = np.empty((len(vectors_AV), min(NUM_CELLS_OF_ANCHOR, len(self.centres_CV))), np.int32)
        for group, cells in enumerate(self.groups):
            members = np.flatnonzero(group_A == group)
            if len(cells) < closest.shape[1]:  # happens if several centres are equal
                cells = np.arange(len(self.centres_CV))
            closest[members] = cells[_closest(vectors_AV[members], self.centres_CV[cells], closest.shape[1])]
        return closest


def _closest(vectors_AV: np.ndarray, centres_CV: np.ndarray, count: int) -> np.ndarray:
    """Return the centres (A, count) that are closest to each vector, starting with the closest."""
    closest = np.empty((len(vectors_AV), count), np.int32)
    for start in range(0, len(vectors_AV), BLOCK_ANCHORS):
        near = vectors_AV[start : start + BLOCK_ANCHORS].astype(np.float32) @ centres_CV.T
        for column in range(count):
            closest[start : start + BLOCK_ANCHORS, column] = place = near.argmax(1)
            near[np.arange(len(near)), place] = -np.inf
    return closest
