"""Find pairs of near-identical clips among millions of fingerprints, using little memory.

1. Write all fingerprints to a local disk, together with a vector for each anchor. Anchors are the steps at which a
   fixed pattern fits best or worst, so copies have anchors at the same sounds.
2. Sort the anchors into cells of similar vectors. Two copies share a cell, and their anchors give the shift between
   them.
3. Within each cell, compare the whitened vectors, and then the fingerprints of the few clips with similar vectors.
4. Join the pairs into groups, and pair each clip of a group with the group's first clip.

Tasks exchange local files, so all of them run on one machine.
"""

# Letters: N clips, P steps, A anchors, V values of a vector, C cells.

import mmap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.sparse import csgraph

from pipeline.measures.fingerprint import MIN_CELLS, NUM_STEPS, closest, count_cells, unpack
from pipeline.measures.table import read_measures
from pipeline.quality.duplicates.anchors import ANCHOR_DTYPE, SCALE, find_anchors
from pipeline.quality.duplicates.cells import Cells
from pipeline.quality.duplicates.comparison import PAIR_DTYPE, compare_cell
from pipeline.quality.duplicates.pair_table import MAX_DISTANCE
from pipeline.snapshots.snapshot import Snapshot

PART_CLIPS = 2**15
BLOCK_CLIPS = 2**11
CELL_CLIPS = 512
"""Approximate number of clips per cell."""
MAX_CELLS = 2**16
MIN_TASK_CELLS, MAX_TASKS = 16, 512
"""Minimum number of cells per task, and maximum number of tasks. Each task opens the files of all parts, so many small
tasks would be slow."""
WHITENING_RIDGE = 0.01
"""Share of the mean variance that is added to each variance, so that nearly constant values do not get too much
weight."""
SIMILARITY_OF_2M, SIMILARITY_PER_DECADE, LOWEST_SIMILARITY = 0.6, 0.05, 0.5
"""Minimum cosine between whitened vectors for two million clips, its increase if there are ten times as many clips, and
its lowest value. See `similarity_needed`."""


class RunTasks(Protocol):
    def __call__(
        self, function: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any, num_items: int
    ) -> Iterator[tuple[Any, Any]]:
        """Run `function(item, shared)` for each item on this machine. Yields items and results in no fixed order."""
        ...


@dataclass(frozen=True)
class SnapshotPart:
    """The clips of some shards. Their numbers are consecutive."""

    number: int
    start: int
    clips: Snapshot


@dataclass(frozen=True)
class PartSummary:
    """A summary of a part's fingerprints, which is returned to the driver."""

    hashes: np.ndarray
    """The uint64 hash of each clip's fingerprint (N,), or 0 if the clip has too little content."""
    num_missing: int
    sample: np.ndarray
    """A sample of the part's vectors (A, V)."""


@dataclass(frozen=True)
class SearchFiles:
    """The files of a search. From step 2 on, it also has the cells."""

    folder: Path
    num_parts: int
    cells: Cells | None = None
    whitening: np.ndarray | None = None
    """Matrix (V, V) that decorrelates the values of vectors and equalises their variances."""
    min_similarity: float = SIMILARITY_OF_2M

    @property
    def words(self) -> Path:
        return self.folder / "words.npy"

    def read_words(self) -> np.ndarray:
        """Memory-map the fingerprints of all clips (N, P)."""
        words = np.load(self.words, mmap_mode="r")
        # Disable read-ahead. The accesses are few and random, and reading ahead megabytes for each would fill the
        # memory.
        assert isinstance(words.base, mmap.mmap)
        words.base.madvise(mmap.MADV_RANDOM)
        return words

    def anchors(self, part: int) -> Path:
        return self.folder / f"anchors-{part}.npy"

    def sorted_anchors(self, part: int) -> Path:
        return self.folder / f"sorted-{part}.bin"

    def starts(self, part: int) -> Path:
        """File (C + 1) of int64 with the start of each cell in `sorted_anchors`, followed by the end of the last
        cell."""
        return self.folder / f"starts-{part}.bin"


def find_pairs(snapshot: Snapshot, folder: Path, run: RunTasks) -> tuple[pa.Table, int]:
    """Return a snapshot's near-identical pairs, and the number of clips without a fingerprint.

    folder: a folder on a local disk with 3.2 kB of free space per clip.
    """
    # Number the clips in the order of their shards, because parts consist of shards. `order` gives the index row of
    # each number.
    order = np.argsort(snapshot.index["shard"].combine_chunks().indices.to_numpy(), kind="stable")
    starts = range(0, len(order), PART_CLIPS)
    space = SearchFiles(folder, len(starts))
    np.lib.format.open_memmap(space.words, "w+", "<u4", (len(order), NUM_STEPS))
    parts = (_take_part(snapshot, order, number) for number in range(len(starts)))
    prepared: list[PartSummary] = [PartSummary(np.empty(0), 0, np.empty(0))] * len(starts)
    for part, result in run(read_fingerprints, parts, space, len(starts)):
        prepared[part.number] = result

    hashes = np.concatenate([each.hashes for each in prepared])
    # Treat clips with identical fingerprints as one clip until the end of the search.
    _, first_of_hash, same = np.unique(hashes, return_index=True, return_inverse=True)
    representative = first_of_hash[same]
    is_searched = (representative == np.arange(len(hashes))) & (hashes != 0)

    space = _choose_cells(space, np.concatenate([each.sample for each in prepared]), int(is_searched.sum()))
    assert space.cells is not None
    num_cells = len(space.cells.centres_CV)
    masks = [(number, is_searched[start : start + PART_CLIPS]) for number, start in enumerate(starts)]
    for (number, _), _ in run(sort_into_cells, masks, space, len(masks)):
        space.anchors(number).unlink()  # tasks may be repeated, so they can't remove it
    task_cells = max(MIN_TASK_CELLS, num_cells // MAX_TASKS)
    cells = [range(start, min(start + task_cells, num_cells)) for start in range(0, num_cells, task_cells)]
    found = [pairs for _, pairs in run(compare_in_cells, cells, space, len(cells))]

    is_copy = (representative != np.arange(len(hashes))) & (hashes != 0)
    copies = np.zeros(int(is_copy.sum()), PAIR_DTYPE)
    copies["first"], copies["second"] = representative[is_copy], np.flatnonzero(is_copy)
    pairs = list_against_first(np.concatenate([copies, *found]), space.read_words(), order)
    keys = snapshot.index["key"]
    columns = [keys.take(pa.array(order[pairs[name]])) for name in ("first", "second")]
    table = pa.table([*columns, pairs["distance"], pairs["offset_s"]], ["first", "second", "distance", "offset_s"])
    return table, sum(each.num_missing for each in prepared)


def _take_part(snapshot: Snapshot, order: np.ndarray, number: int) -> SnapshotPart:
    start = number * PART_CLIPS
    rows = pa.array(order[start : start + PART_CLIPS])
    return SnapshotPart(number, start, replace(snapshot, index=snapshot.index.take(rows)))


def _choose_cells(space: SearchFiles, sample_AV: np.ndarray, num_clips: int) -> SearchFiles:
    """Choose the cells, the whitening and the threshold, given a sample of vectors. num_clips: number of clips to
    search."""
    num_cells = min(MAX_CELLS, -(-num_clips // CELL_CLIPS), len(sample_AV))
    cells = Cells.around(np.random.default_rng(0).permutation(sample_AV)[:num_cells])
    whitening, min_similarity = find_whitening(sample_AV), similarity_needed(num_clips)
    return replace(space, cells=cells, whitening=whitening, min_similarity=min_similarity)


def read_fingerprints(part: SnapshotPart, space: SearchFiles) -> PartSummary:
    """Write the fingerprints and the anchors of a part's clips to shared files."""
    fingerprints = read_measures(part.clips, ["fingerprint"])["fingerprint"]
    words = np.load(space.words, mmap_mode="r+")
    hashes, anchors = [], []
    factors = np.random.default_rng(0).integers(2**64, size=NUM_STEPS // 2, dtype=np.uint64) | np.uint64(1)
    for start in range(0, len(fingerprints), BLOCK_CLIPS):
        block = unpack(fingerprints.slice(start, BLOCK_CLIPS).to_pylist())
        words[part.start + start : part.start + start + len(block)] = block
        mixed = block.view("<u8") * factors
        has_content = count_cells(block) >= MIN_CELLS
        hashes.append(np.where(has_content, (mixed ^ mixed >> np.uint64(29)).sum(1), 0))
        found = find_anchors(block)
        found = found[has_content[found["clip"]]]
        found["clip"] += part.start + start
        anchors.append(found)
    found = np.concatenate(anchors)
    np.save(space.anchors(part.number), found)
    rng = np.random.default_rng(part.number)
    sample = rng.choice(len(found), min(len(found), -(-MAX_CELLS // space.num_parts)), replace=False)
    return PartSummary(
        np.concatenate(hashes), fingerprints.null_count, found["vector"][sample].astype(np.float32) / SCALE
    )


def find_whitening(vectors_AV: np.ndarray) -> np.ndarray:
    """Return a matrix (V, V) that decorrelates the values of vectors and gives them nearly equal variances."""
    moments_VV = vectors_AV.T @ vectors_AV / max(len(vectors_AV), 1)
    variances_V, directions_VV = np.linalg.eigh(moments_VV)
    ridge = max(WHITENING_RIDGE * variances_V.mean(), 1e-6)
    return directions_VV / np.sqrt(np.maximum(variances_V, 0) + ridge)


def similarity_needed(num_clips: int) -> float:
    """Return the minimum cosine between anchors that keeps the number of chance matches per clip constant.

    In tests with noise, 98 % of the anchors of noisy copies exceeded 0.6, and so did three in ten million unrelated
    pairs. 94 % of the anchors exceeded 0.65, but only a sixth of these unrelated pairs did.
    """
    similarity = SIMILARITY_OF_2M + SIMILARITY_PER_DECADE * float(np.log10(max(num_clips, 1) / 2e6))
    return max(similarity, LOWEST_SIMILARITY)


def sort_into_cells(part: tuple[int, np.ndarray], space: SearchFiles) -> None:
    """Whiten the anchors of a part's clips, and sort them by cell."""
    number, is_searched = part
    anchors = np.load(space.anchors(number))
    anchors = anchors[is_searched[anchors["clip"] - number * PART_CLIPS]]
    assert space.cells is not None and space.whitening is not None, "chosen before"
    # Choose the cells before whitening, because components with high variance are the most stable across copies.
    cells = space.cells.closest(anchors["vector"])
    for start in range(0, len(anchors), BLOCK_CLIPS):
        vectors_AV = anchors["vector"][start : start + BLOCK_CLIPS]
        white_AV = vectors_AV.astype(np.float32) @ space.whitening
        white_AV /= np.maximum(np.linalg.norm(white_AV, axis=1, keepdims=True), 1e-6)
        vectors_AV[:] = np.rint(white_AV * SCALE)
    order = np.argsort(cells.ravel(), kind="stable")
    anchors[order // cells.shape[1]].tofile(space.sorted_anchors(number))
    np.searchsorted(cells.ravel()[order], np.arange(len(space.cells.centres_CV) + 1)).tofile(space.starts(number))


def compare_in_cells(cells: range, space: SearchFiles) -> np.ndarray:
    """Return the near-identical pairs (`PAIR_DTYPE`) within the given cells."""
    words = space.read_words()
    anchors, counts = [], []
    # Read all cells of the task together, because each of hundreds of parts has only a few anchors in a single cell.
    for part in range(space.num_parts):
        starts = np.fromfile(space.starts(part), np.int64, len(cells) + 1, offset=8 * cells.start)
        offset = ANCHOR_DTYPE.itemsize * int(starts[0])
        anchors.append(np.fromfile(space.sorted_anchors(part), ANCHOR_DTYPE, starts[-1] - starts[0], offset=offset))
        counts.append(np.diff(starts))
    cell_A = np.tile(np.arange(len(cells)), space.num_parts).repeat(np.concatenate(counts))
    ordered = np.concatenate(anchors)[np.argsort(cell_A, kind="stable")]
    ends = np.sum(counts, axis=0).cumsum()
    return np.concatenate([compare_cell(each, words, space.min_similarity) for each in np.split(ordered, ends[:-1])])


def list_against_first(pairs: np.ndarray, words: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    """Pair the clips of each group with its first clip in the order of `row_of`, at the best shift.

    If a clip is only indirectly similar to the first clip of its group, it keeps its original pair.
    """
    size = len(words)
    edges = sparse.coo_array((np.ones(len(pairs), bool), (pairs["first"], pairs["second"])), shape=(size, size))
    group = csgraph.connected_components(edges, directed=False)[1]
    members = np.unique(np.concatenate([pairs["first"], pairs["second"]]))
    members = members[np.lexsort([row_of[members], group[members]])]
    _, firsts, which = np.unique(group[members], return_index=True, return_inverse=True)
    listed = np.zeros(len(members), PAIR_DTYPE)
    listed["first"], listed["second"] = members[firsts][which], members
    listed = listed[listed["first"] != listed["second"]]
    for start in range(0, len(listed), BLOCK_CLIPS):
        block = listed[start : start + BLOCK_CLIPS]
        block["distance"], block["offset_s"] = closest(words[block["first"]], words[block["second"]])
    is_close = listed["distance"] <= MAX_DISTANCE
    far = listed["second"][~is_close]
    others = pairs[np.isin(pairs["first"], far) | np.isin(pairs["second"], far)]
    is_later = row_of[others["first"]] > row_of[others["second"]]
    others["first"], others["second"] = (
        np.where(is_later, others[here], others[there]) for here, there in (("second", "first"), ("first", "second"))
    )
    others["offset_s"][is_later] *= -1
    return np.concatenate([listed[is_close], others])
