"""Differences between two copies of the same clips, found by their stored measures and fingerprints."""

# Letters: N clips, P steps, B pairs of bands, F frequencies, D shifts.

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import.

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.keys import positions_of
from pipeline.measures.fingerprint import CHANCE, MIN_CELLS, NUM_BANDS, NUM_STEPS, STEP_S, unpack
from pipeline.measures.table import read_measures
from pipeline.snapshots.snapshot import Snapshot

COMPARED_CLIPS = 2**14
"""Clips per batch, which bounds the memory: a fingerprint has 1 kB."""
SHIFTED_CLIPS = 256
"""Clips per batch of the search for shifts, of 130 kB each."""
FFT_STEPS = 512
MAX_SHIFT_STEPS = NUM_STEPS - 1
MAX_DISTANCE = 0.5
"""Largest distance between two versions of one recording."""
MIN_SHIFT_S = 1.5 * STEP_S
"""Smallest shift that counts. Decoders of lossy codecs delay audio by up to 50 ms."""
MIN_LEVEL_DB = 0.5
MAX_BANDWIDTH_RATIO = 0.85
"""Largest ratio of two bandwidths that counts as a difference; codecs end their spectra within a mel bin or two."""
COLUMNS = ("rms_db", "bandwidth_hz", "codec", "rate_hz", "silence", "fingerprint")

IDENTICAL, SAME, UNCLEAR = "identical", "same", "unclear"
SHIFTED, DIFFERENT, LEVEL, BANDWIDTH, CODEC, SILENT = "shifted", "different", "level", "bandwidth", "codec", "silent"
KINDS = (DIFFERENT, SILENT, SHIFTED, LEVEL, BANDWIDTH, CODEC, UNCLEAR, SAME, IDENTICAL)
"""Kinds of clips, most severe first. `unclear`: too steady or too quiet for a fingerprint, with equal measures."""


@dataclass(frozen=True)
class Comparison:
    """Two snapshots, compared clip by clip."""

    table: pa.Table
    """A row per common clip: key, kinds, offset, distance, and the measures of both."""
    num_first_only: int
    num_second_only: int

    def count_kinds(self) -> Counter[str]:
        """Count the clips of each kind. A clip can have several kinds."""
        return Counter(kind for kinds in self.table["kinds"].to_pylist() for kind in kinds.split())


def compare_copies(first: Snapshot, second: Snapshot) -> Comparison:
    """Compare the clips that two snapshots have in common, by key."""
    rows = positions_of(first.index["key"], second.index["key"])
    common = np.flatnonzero(rows >= 0)
    # Batches of neighbours in the first snapshot's shards, so that each batch reads few tables of measures.
    shards = first.index["shard"].combine_chunks().indices.to_numpy()
    common = common[np.argsort(shards[common], kind="stable")]
    tables = [
        compare_measures(_measures_of(first, block), _measures_of(second, rows[block]))
        for start in range(0, len(common), COMPARED_CLIPS)
        for block in (common[start : start + COMPARED_CLIPS],)
    ]
    empty = compare_measures(_measures_of(first, common[:0]), _measures_of(second, common[:0]))
    num_common = len(common)
    return Comparison(pa.concat_tables([empty, *tables]), len(first.index) - num_common, len(second.index) - num_common)


def _measures_of(snapshot: Snapshot, rows: np.ndarray) -> pa.Table:
    part = replace(snapshot, index=snapshot.index.take(pa.array(rows)))
    return read_measures(part, COLUMNS).append_column("key", part.index["key"])


def compare_measures(first: pa.Table, second: pa.Table) -> pa.Table:
    """Compare clips (N,) by `COLUMNS` and `key`; null measures are unknown and equal anything."""
    offset_s, distance, is_clear = find_offsets(*(unpack(each["fingerprint"].to_pylist()) for each in (first, second)))
    is_equal = pc.fill_null(pc.equal(first["fingerprint"], second["fingerprint"]), False).to_numpy()
    rms, bandwidth, silence = (
        [each[name].cast(pa.float64()).to_numpy() for each in (first, second)]
        for name in ("rms_db", "bandwidth_hz", "silence")
    )
    is_same = is_clear & (distance <= MAX_DISTANCE)
    is_shifted = is_same & (abs(offset_s) >= MIN_SHIFT_S)
    level_db = rms[1] - rms[0]
    one_is_silent = np.isfinite(silence[0] + silence[1]) & ((silence[0] == 1) != (silence[1] == 1))
    ratio = np.fmin(*bandwidth) / np.fmax(*bandwidth)
    codecs = pc.fill_null(pc.not_equal(first["codec"], second["codec"]), False).to_numpy()
    found = {
        SILENT: one_is_silent,
        DIFFERENT: is_clear & ~is_same & ~one_is_silent,
        SHIFTED: is_shifted,
        # Parts of a shifted clip are other sounds, at other levels and with other spectra.
        LEVEL: (abs(level_db) >= MIN_LEVEL_DB) & ~is_shifted & ~one_is_silent & (is_same | ~is_clear),
        BANDWIDTH: (ratio <= MAX_BANDWIDTH_RATIO) & ~is_shifted & (is_same | ~is_clear),
        CODEC: codecs,
    }
    differs = np.logical_or.reduce(list(found.values()))
    found |= {
        UNCLEAR: ~differs & ~is_clear & ~is_equal,
        IDENTICAL: ~differs & is_equal,
        SAME: ~differs & is_clear & ~is_equal,
    }
    columns: dict[str, Any] = {
        "key": first["key"].combine_chunks(),
        "kinds": _join_kinds(found),
        "offset_s": np.where(is_same, offset_s, np.nan).astype(np.float32),
        "distance": np.where(is_clear, distance, np.nan).astype(np.float32),
        "level_db": level_db.astype(np.float32),
    }
    for name in ("bandwidth_hz", "codec", "rate_hz"):
        columns |= {f"{name}_{place}": table[name].combine_chunks() for place, table in enumerate((first, second), 1)}
    return pa.table(columns)


def _join_kinds(found: dict[str, np.ndarray]) -> pa.Array:
    names = [kind for kind in KINDS if kind in found]
    masks = np.stack([found[name] for name in names], 1)
    return pa.array([" ".join(np.asarray(names)[mask]) for mask in masks], pa.string())


def find_offsets(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the shift at which two versions of each clip agree best.

    first, second: words of `unpack` (N, P). Returns seconds (N,) by which the second version starts later in the
    recording, distances as `pipeline.measures.fingerprint.distances` defines them (N,), but over the overlap of both,
    and a mask (N,) of clips with enough cells to tell.
    """
    parts = [
        _offsets_of(first[start : start + SHIFTED_CLIPS], second[start : start + SHIFTED_CLIPS])
        for start in range(0, len(first), SHIFTED_CLIPS)
    ]
    empty = (np.empty(0), np.empty(0), np.empty(0, bool))
    offsets, distances, is_clear = (np.concatenate(each) for each in zip(empty, *parts, strict=True))
    return offsets, distances, is_clear


def _offsets_of(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    signs = [_signs_of(words) for words in (first, second)]
    counts = [np.abs(each).sum(2) for each in signs]  # (N, P)
    spectra = [np.fft.rfft(each, FFT_STEPS, axis=1) for each in signs]
    agreement_ND = np.fft.irfft((spectra[0] * spectra[1].conj()).sum(2), FFT_STEPS, axis=1)
    shifts = np.arange(-MAX_SHIFT_STEPS, MAX_SHIFT_STEPS + 1)
    agreement_ND = agreement_ND[:, shifts % FFT_STEPS]
    # Cells of each version that overlap the other version.
    before = [np.pad(np.cumsum(each, 1), ((0, 0), (1, 0))) for each in counts]
    low, high = np.maximum(shifts, 0), np.minimum(NUM_STEPS, NUM_STEPS + shifts)
    num_first = before[0][:, high] - before[0][:, low]
    num_second = before[1][:, high - shifts] - before[1][:, low - shifts]
    num_cells = np.minimum(num_first, num_second)
    similarity = agreement_ND / np.sqrt(np.maximum(num_first * num_second, 1))
    chance = CHANCE / np.sqrt(np.maximum(num_cells, MIN_CELLS))
    distance = np.where(num_cells < MIN_CELLS, 1.0, (1 - similarity) / (1 - chance))
    # Among equally good shifts, the smallest.
    distance_ND = distance + 1e-6 * abs(shifts)
    best = distance_ND.argmin(1)
    is_clear = np.minimum(counts[0].sum(1), counts[1].sum(1)) >= MIN_CELLS
    return shifts[best] * STEP_S, distance[np.arange(len(best)), best], is_clear


def _signs_of(words: np.ndarray) -> np.ndarray:
    """Return 1, 0 or −1 for each cell: (N, P) → (N, P, B)."""
    bits = (words[:, :, None] >> np.arange(2 * NUM_BANDS, dtype=np.uint32)) & np.uint32(1)
    return bits[..., :NUM_BANDS].astype(np.float32) - bits[..., NUM_BANDS:]


def worst_of_kind(comparison: Comparison, kind: str, num: int) -> pd.DataFrame:
    """Return the clips of a kind that differ most."""
    column = {SHIFTED: "offset_s", LEVEL: "level_db"}.get(kind, "distance")
    table = comparison.table.filter(pc.match_substring(comparison.table["kinds"], kind)).to_pandas()
    return table.iloc[np.argsort(-table[column].abs().fillna(0).to_numpy(), kind="stable")[:num]]
