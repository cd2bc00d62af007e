"""What the sidecars say of each segment, and what is still to be fetched."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported.

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import FetchConfig
from pipeline.errors import MismatchError
from pipeline.keys import has_repeats, positions_of
from pipeline.records import FailureCategory, Reason, ShardPlan
from pipeline.segments import segments_of
from pipeline.shards.format import SIDECAR_SCHEMA, WRITTEN, Checksum, digest_of, read_sidecar, sidecar_checksum
from pipeline.store.storage import Store

NUM_READERS = 16
SIDECAR_COLUMNS = ["key", "status", "reason", "attempts"]
TRANSIENT_REASONS = pa.array([reason.value for reason in Reason if reason.category is FailureCategory.TRANSIENT])
REPETITIVE = ["split", "status", "reason", "shard"]


def read_sidecar_table(store: Store, fingerprint: str, columns: Sequence[str] = SIDECAR_COLUMNS) -> pa.Table:
    """Read all sidecars into one table with a row per key; the column `shard` is added.

    A key that was visited more than once counts as written if it was written, else by its last visit. Raises
    MismatchError if a shard was made with other settings than those of `fingerprint`.
    """
    names = store.list("shards", ".parquet")

    def read(name: str) -> pa.Table:
        table = read_sidecar(store, name, list(columns))
        _check_fingerprint(table, fingerprint, store.url(name))
        shard = pa.repeat(pa.scalar(name.removesuffix(".parquet")), len(table))
        table = table.replace_schema_metadata(None).append_column("shard", shard)
        for name in REPETITIVE:
            if name in table.column_names:
                place = table.column_names.index(name)
                table = table.set_column(place, name, table[name].dictionary_encode())
        return table

    if not names:
        schema = pa.schema([*(SIDECAR_SCHEMA.field(name) for name in columns), ("shard", pa.string())])
        return schema.empty_table()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        sidecar_table = pa.concat_tables(pool.map(read, names)).unify_dictionaries()
    return _latest_attempts(sidecar_table)


def _latest_attempts(sidecar_table: pa.Table) -> pa.Table:
    if not has_repeats(sidecar_table["key"]):
        return sidecar_table
    visits = sidecar_table.select(["key", "attempts", "shard"]).to_pandas()
    visits["shard"] = visits["shard"].astype(str)
    visits["written"] = pc.equal(sidecar_table["status"].cast(pa.string()), WRITTEN).to_numpy()
    visits = visits.sort_values(["key", "written", "attempts", "shard"], kind="stable")
    kept = visits.index[~visits["key"].duplicated(keep="last")]
    return sidecar_table.take(pa.array(np.sort(kept)))


def read_ledger(store: Store, fingerprint: str, columns: Sequence[str] = SIDECAR_SCHEMA.names) -> pd.DataFrame:
    """Read all sidecars as `read_sidecar_table` does."""
    sidecar_table = read_sidecar_table(store, fingerprint, columns)
    plain = [
        (name, sidecar_table[name].cast(pa.string()) if name in REPETITIVE else sidecar_table[name])
        for name in sidecar_table.column_names
    ]
    return pa.table(dict(plain)).to_pandas()


def read_checksums(store: Store, shards: Sequence[str]) -> list[Checksum]:
    """Read from the sidecars of shards, named without extension, what their tars are known by."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return list(pool.map(lambda shard: sidecar_checksum(read_sidecar(store, f"{shard}.parquet", ["key"])), shards))


def _check_fingerprint(table: pa.Table, fingerprint: str, where: str) -> None:
    found = table.schema.metadata[b"fingerprint"].decode()
    if found != fingerprint:
        raise MismatchError(
            f"{where} was made with other settings (fingerprint {found}) than these ({fingerprint}): the format, the"
            " fbank or keep_audio differ. Use the same settings, or another root"
        )


@dataclass(frozen=True, eq=False)
class PreprocessPlan:
    """What is to be visited. The shard plans are made one by one, when they are asked for."""

    segments: pa.Table
    attempts: np.ndarray
    """Made so far at each segment (N,)."""
    shards: Sequence[np.ndarray]
    """Rows of each shard."""

    @property
    def num_segments(self) -> int:
        return sum(map(len, self.shards))

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[ShardPlan]:
        for rows in self.shards:
            segments = tuple(segments_of(self.segments.take(pa.array(rows))))
            attempts = tuple(int(count) for count in self.attempts[rows])
            planned = [[segment.key, segment.end_ms, count] for segment, count in zip(segments, attempts, strict=True)]
            yield ShardPlan(digest_of(planned), segments[0].split, segments, attempts)


def plan_shards(
    segments: pa.Table,
    sidecar_table: pa.Table,
    clips_per_shard: int,
    retry: Collection[FailureCategory] = (FailureCategory.THROTTLED, FailureCategory.TRANSIENT),
    max_attempts: int = FetchConfig.max_total_attempts,
) -> PreprocessPlan:
    """Plan shards for the segments that were never visited, or failed in a way of the kinds in `retry`.

    segments: of `SEGMENT_SCHEMA`. sidecar_table: with `SIDECAR_COLUMNS`. Segments that were never attempted come first,
    in their order, in full shards: those of an interrupted run are planned as they were before.

    After them come those to try again, from the rarest class on, because a run may be stopped and each clip of such a
    class counts. A transient failure that came `max_attempts` times is taken for permanent.
    """
    place = positions_of(segments["key"], sidecar_table["key"])
    is_known = place >= 0
    again = pa.array([reason.value for reason in Reason if reason.category in retry], pa.string())
    is_due = pc.and_(
        pc.is_in(sidecar_table["reason"].cast(pa.string()), value_set=again),
        pc.not_equal(sidecar_table["status"].cast(pa.string()), WRITTEN),
    ).to_numpy()
    attempts = np.zeros(len(segments), np.int32)
    attempts[is_known] = sidecar_table["attempts"].to_numpy()[place[is_known]]
    is_again = is_known.copy()
    is_again[is_known] = is_due[place[is_known]]
    is_transient = pc.is_in(sidecar_table["reason"].cast(pa.string()), value_set=TRANSIENT_REASONS).to_numpy()
    is_again[is_known] &= ~(is_transient[place[is_known]] & (attempts[is_known] >= max_attempts))
    rarity = _count_rarest_class(segments)
    split = segments["split"].combine_chunks().indices.to_numpy() if len(segments) else np.zeros(0, np.int32)
    shards = []
    for code in dict.fromkeys(split.tolist()):
        for wanted in (~is_known, is_again):
            rows = np.flatnonzero(wanted & (split == code))
            if wanted is is_again:
                rows = rows[np.argsort(rarity[rows], kind="stable")]
            shards += [rows[start : start + clips_per_shard] for start in range(0, len(rows), clips_per_shard)]
    return PreprocessPlan(segments, attempts, shards)


def _count_rarest_class(segments: pa.Table) -> np.ndarray:
    """Count for each segment (N,) how many there are of the rarest of its classes."""
    labels = segments["labels"].combine_chunks()
    codes = labels.indices.to_numpy()
    class_sets = [text.split(",") for text in labels.dictionary.to_pylist()]
    counts: Counter[str] = Counter()
    for mids, count in zip(class_sets, np.bincount(codes, minlength=len(class_sets)).tolist(), strict=True):
        counts.update(dict.fromkeys(mids, count))
    return np.array([min(counts[mid] for mid in mids) for mids in class_sets], np.int64)[codes]
