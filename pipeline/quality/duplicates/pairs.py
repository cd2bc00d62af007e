"""Find pairs of near-identical clips among millions of fingerprints, in little memory.

1. Fingerprints are written side by side to a local disk. At a few steps of each clip, its anchors, a vector describes
   the second around. They are where a fixed pattern fits best or worst, so a copy has them at the same sounds.
2. Anchors are sorted into cells, those of similar vectors. Two copies share one, and with it how far apart they start.
3. Within a cell, clips are compared by their vectors, whitened, and the few that resemble each other by their
   fingerprints.
4. What is found is joined into groups, and each group listed against its first clip.

Steps 1 to 3 are tasks that know each other's files only, so all of them run on one machine.
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

from pipeline.measures.fingerprint import (
    MAX_SHIFT_STEPS,
    MIN_CELLS,
    NUM_STEPS,
    STEP_S,
    closest,
    count_cells,
    distances,
    unpack,
)
from pipeline.measures.table import read_measures
from pipeline.quality.duplicates.anchors import ANCHOR_DTYPE, SCALE, find_anchors
from pipeline.quality.duplicates.cells import Cells
from pipeline.quality.duplicates.pair_table import MAX_DISTANCE
from pipeline.snapshots.snapshot import Snapshot

PART_CLIPS = 2**15
BLOCK_CLIPS = 2**11
COMPARED_ANCHORS = 2**9
"""At a time. The products that they make stay in a processor's cache."""
CELL_CLIPS = 512
"""Of which a cell holds anchors, about."""
MAX_CELLS = 2**16
MIN_TASK_CELLS, MAX_TASKS = 16, 512
"""Each task opens the files of all parts, so neither it nor their number may be small."""
WHITENING_RIDGE = 0.01
"""Of the mean variance of a vector's values, added to each, so that those which hardly vary don't count as much."""
SIMILARITY_OF_2M, SIMILARITY_PER_DECADE, LOWEST_SIMILARITY = 0.6, 0.05, 0.5
"""Cosine of two whitened vectors whose clips are compared, in a search of two million clips, and how much more of ten
times as many: see `similarity_needed`."""
NUM_SHIFTS = 2 * MAX_SHIFT_STEPS + 1
MAX_DISTANCE_NEARBY = 0.8
"""Of copies that are compared at a start one step too early or late."""


class Run(Protocol):
    def __call__(
        self, function: Callable[[Any, Any], Any], items: Iterable[Any], shared: Any, num_items: int
    ) -> Iterator[tuple[Any, Any]]:
        """Run `function(item, shared)` for each item on this machine, and yield items and results in any order."""
        ...


@dataclass(frozen=True)
class Part:
    """Clips of some shards, whose numbers follow each other."""

    number: int
    start: int
    clips: Snapshot


@dataclass(frozen=True)
class Prepared:
    """Figures of a part's fingerprints, by which the driver goes on."""

    hashes: np.ndarray
    """Of each clip (N,) of uint64; 0 for one with too little content."""
    num_missing: int
    sample: np.ndarray
    """Some of its vectors (A, V)."""


@dataclass(frozen=True)
class Space:
    """Files of a search, and its cells once they are known."""

    folder: Path
    num_parts: int
    cells: Cells | None = None
    whitening: np.ndarray | None = None
    """(V, V), by which the values of vectors are made independent and vary alike."""
    min_similarity: float = SIMILARITY_OF_2M

    @property
    def words(self) -> Path:
        return self.folder / "words.npy"

    def read_words(self) -> np.ndarray:
        """Map the fingerprints of all clips (N, P)."""
        words = np.load(self.words, mmap_mode="r")
        # Few are looked at, here and there: megabytes read ahead for each would fill what little memory there is.
        assert isinstance(words.base, mmap.mmap)
        words.base.madvise(mmap.MADV_RANDOM)
        return words

    def anchors(self, part: int) -> Path:
        return self.folder / f"anchors-{part}.npy"

    def sorted_anchors(self, part: int) -> Path:
        return self.folder / f"sorted-{part}.bin"

    def starts(self, part: int) -> Path:
        """Where in `sorted_anchors` each cell starts, and the last one ends (C + 1) of int64."""
        return self.folder / f"starts-{part}.bin"


PAIR_DTYPE = np.dtype([("first", "<i4"), ("second", "<i4"), ("distance", "<f4"), ("offset_s", "<f4")])


def find_pairs(snapshot: Snapshot, folder: Path, run: Run) -> tuple[pa.Table, int]:
    """Return the pairs of a snapshot's near-identical clips, and how many clips have no fingerprint yet.

    folder: of a local disk, with room for 3.2 kB a clip.
    """
    # Clips are numbered by their shards, which are read part by part; `order` has their rows in the index.
    order = np.argsort(snapshot.index["shard"].combine_chunks().indices.to_numpy(), kind="stable")
    starts = range(0, len(order), PART_CLIPS)
    space = Space(folder, len(starts))
    np.lib.format.open_memmap(space.words, "w+", "<u4", (len(order), NUM_STEPS))
    parts = (
        Part(number, start, replace(snapshot, index=snapshot.index.take(pa.array(order[start : start + PART_CLIPS]))))
        for number, start in enumerate(starts)
    )
    prepared: list[Prepared] = [Prepared(np.empty(0), 0, np.empty(0))] * len(starts)
    for part, result in run(read_fingerprints, parts, space, len(starts)):
        prepared[part.number] = result

    hashes = np.concatenate([each.hashes for each in prepared])
    # Identical fingerprints are one clip until the end, however many they are.
    _, first_of_hash, same = np.unique(hashes, return_index=True, return_inverse=True)
    representative = first_of_hash[same]
    is_searched = (representative == np.arange(len(hashes))) & (hashes != 0)

    sample = np.concatenate([each.sample for each in prepared])
    num_searched = int(is_searched.sum())
    num_cells = min(MAX_CELLS, -(-num_searched // CELL_CLIPS), len(sample))
    centres = np.random.default_rng(0).permutation(sample)[:num_cells]
    whitening, min_similarity = find_whitening(sample), similarity_needed(num_searched)
    space = replace(space, cells=Cells.around(centres), whitening=whitening, min_similarity=min_similarity)
    masks = [(number, is_searched[start : start + PART_CLIPS]) for number, start in enumerate(starts)]
    for (number, _), _ in run(sort_into_cells, masks, space, len(masks)):
        space.anchors(number).unlink()  # not by the task, which may be repeated
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


def read_fingerprints(part: Part, space: Space) -> Prepared:
    """Write the fingerprints of a part's clips where all find them, and their anchors."""
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
    return Prepared(np.concatenate(hashes), fingerprints.null_count, found["vector"][sample].astype(np.float32) / SCALE)


def find_whitening(vectors_AV: np.ndarray) -> np.ndarray:
    """Return the matrix (V, V) after which vectors' values are uncorrelated, and of the same variance or nearly so."""
    moments_VV = vectors_AV.T @ vectors_AV / max(len(vectors_AV), 1)
    variances_V, directions_VV = np.linalg.eigh(moments_VV)
    ridge = max(WHITENING_RIDGE * variances_V.mean(), 1e-6)
    return directions_VV / np.sqrt(np.maximum(variances_V, 0) + ridge)


def similarity_needed(num_clips: int) -> float:
    """Return the cosine from which two anchors' clips are compared, so that each clip meets as few by chance.

    Of noise, 98 % of noisy copies' anchors are above 0.6, and three in ten million of unrelated ones; above 0.65 are
    94 % and a sixth as many. So the more clips there are, the more similar must they be.
    """
    similarity = SIMILARITY_OF_2M + SIMILARITY_PER_DECADE * float(np.log10(max(num_clips, 1) / 2e6))
    return max(similarity, LOWEST_SIMILARITY)


def sort_into_cells(part: tuple[int, np.ndarray], space: Space) -> None:
    """Sort the anchors of a part's clips, those that are searched, by the cells that they are in, and whiten them."""
    number, is_searched = part
    anchors = np.load(space.anchors(number))
    anchors = anchors[is_searched[anchors["clip"] - number * PART_CLIPS]]
    assert space.cells is not None and space.whitening is not None, "chosen before"
    # As they are, since what varies most is what changes least in a copy.
    cells = space.cells.closest(anchors["vector"])
    for start in range(0, len(anchors), BLOCK_CLIPS):
        vectors_AV = anchors["vector"][start : start + BLOCK_CLIPS]
        white_AV = vectors_AV.astype(np.float32) @ space.whitening
        white_AV /= np.maximum(np.linalg.norm(white_AV, axis=1, keepdims=True), 1e-6)
        vectors_AV[:] = np.rint(white_AV * SCALE)
    order = np.argsort(cells.ravel(), kind="stable")
    anchors[order // cells.shape[1]].tofile(space.sorted_anchors(number))
    np.searchsorted(cells.ravel()[order], np.arange(len(space.cells.centres_CV) + 1)).tofile(space.starts(number))


def compare_in_cells(cells: range, space: Space) -> np.ndarray:
    """Return the pairs of near-identical clips that share one of some cells, by `PAIR_DTYPE`."""
    words = space.read_words()
    anchors, counts = [], []
    # All of the task's cells at once: a cell has few anchors in each of hundreds of parts.
    for part in range(space.num_parts):
        starts = np.fromfile(space.starts(part), np.int64, len(cells) + 1, offset=8 * cells.start)
        offset = ANCHOR_DTYPE.itemsize * int(starts[0])
        anchors.append(np.fromfile(space.sorted_anchors(part), ANCHOR_DTYPE, starts[-1] - starts[0], offset=offset))
        counts.append(np.diff(starts))
    cell_A = np.tile(np.arange(len(cells)), space.num_parts).repeat(np.concatenate(counts))
    ordered = np.concatenate(anchors)[np.argsort(cell_A, kind="stable")]
    ends = np.sum(counts, axis=0).cumsum()
    return np.concatenate([_compare(each, words, space.min_similarity) for each in np.split(ordered, ends[:-1])])


def _compare(anchors: np.ndarray, words: np.ndarray, min_similarity: float) -> np.ndarray:
    """Compare clips with those before that resemble none before them. So a thousand copies are compared with one."""
    anchors = anchors[np.argsort(anchors["step"], kind="stable")]
    vectors = anchors["vector"].astype(np.float32) / SCALE
    leaders, found = np.empty(0, np.intp), [np.empty(0, PAIR_DTYPE)]
    for start in range(0, len(anchors), COMPARED_ANCHORS):
        block = np.arange(start, min(start + COMPARED_ANCHORS, len(anchors)))
        # By step, so that leaders whose clips start too far apart from all that follow are left behind.
        leaders = leaders[anchors["step"][leaders] >= anchors["step"][start] - MAX_SHIFT_STEPS]
        known = _verify(*_resembling(vectors, block, leaders, min_similarity), anchors, words)
        new = block[~np.isin(anchors["clip"][block], known["second"])]
        second, first = _resembling(vectors, new, new, min_similarity)
        among_new = _verify(second[first < second], first[first < second], anchors, words)
        found += [known, among_new]
        leaders = np.append(leaders, new[~np.isin(anchors["clip"][new], among_new["second"])])
    return np.concatenate(found)


def _resembling(
    vectors: np.ndarray, rows: np.ndarray, among: np.ndarray, min_similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return which of some rows resemble which of others, sorted by both."""
    is_similar = vectors[rows] @ vectors[among].T >= min_similarity
    second, first = np.divmod(np.flatnonzero(is_similar), max(len(among), 1))  # several times as fast as `nonzero`
    return rows[second], among[first]


def _verify(second: np.ndarray, first: np.ndarray, anchors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Compare the fingerprints of clips whose anchors resemble each other, and return the pairs that are close.

    A clip is compared with one, two, four … others, until one is close: among copies with the first only.
    """
    clip, other = anchors["clip"][second].astype(np.int64), anchors["clip"][first]
    shift = anchors["step"][first].astype(np.int64) - anchors["step"][second]
    is_possible = (clip != other) & (abs(shift) <= MAX_SHIFT_STEPS)
    # In one number each, which sorts a hundred times as fast as rows of three.
    packed = (clip * len(words) + other) * NUM_SHIFTS + shift + MAX_SHIFT_STEPS
    packed = np.sort(packed[is_possible])
    packed = packed[np.append(True, np.diff(packed) > 0)[: len(packed)]]  # `unique` takes five times as long
    found, num_at_once = [np.empty(0, PAIR_DTYPE)], 1
    while len(packed):
        second = packed // NUM_SHIFTS // len(words)
        is_next = np.arange(len(packed)) - np.searchsorted(second, second) < num_at_once
        first, shift = packed[is_next] // NUM_SHIFTS % len(words), packed[is_next] % NUM_SHIFTS - MAX_SHIFT_STEPS
        close = _keep_close(second[is_next], first, shift, words)
        found.append(close)
        packed = packed[~is_next & ~np.isin(second, close["second"])]
        num_at_once *= 2
    return np.concatenate(found)


def _keep_close(seconds: np.ndarray, firsts: np.ndarray, shifts: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Return the pairs of clips, at a shift each (N,), whose fingerprints are close."""
    found = [np.empty(0, PAIR_DTYPE)]
    for start in range(0, len(seconds), BLOCK_CLIPS):
        second, first, shift = (each[start : start + BLOCK_CLIPS] for each in (seconds, firsts, shifts))
        near = distances(words[first], words[second], shift)
        # Two starts seldom are whole steps apart. Of most candidates the first look is enough.
        again = np.flatnonzero(near <= MAX_DISTANCE_NEARBY)
        for more in (-1, 1):
            other = distances(words[first[again]], words[second[again]], shift[again] + more)
            near[again] = np.minimum(near[again], other)
        pairs = np.zeros(len(first), PAIR_DTYPE)
        pairs["first"], pairs["second"], pairs["distance"], pairs["offset_s"] = first, second, near, shift * STEP_S
        found.append(pairs[near <= MAX_DISTANCE])
    return np.concatenate(found)


def list_against_first(pairs: np.ndarray, words: np.ndarray, row_of: np.ndarray) -> np.ndarray:
    """Return pairs with each group's clips against its first by `row_of`, at the best shift.

    A clip that resembles its group's first only through others is listed as it was found.
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
