"""The books: what the sidecars say of each segment, and what is still to be visited."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes its compute functions when it is imported.

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import MismatchError
from pipeline.keys import has_repeats, places_of
from pipeline.records import Kind, Reason, ShardPlan
from pipeline.segments import segments_of
from pipeline.shards.format import SIDECAR_SCHEMA, WRITTEN, Seal, digest_of, read_sidecar, sidecar_seal
from pipeline.store.storage import Store

NUM_READERS = 16
BOOK_COLUMNS = ["key", "status", "reason", "attempts"]
REPETITIVE = ["split", "status", "reason", "shard"]


def read_books(store: Store, fingerprint: str, columns: Sequence[str] = BOOK_COLUMNS) -> pa.Table:
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
        books = pa.concat_tables(pool.map(read, names)).unify_dictionaries()
    return _latest_visits(books)


def _latest_visits(books: pa.Table) -> pa.Table:
    if not has_repeats(books["key"]):
        return books
    visits = books.select(["key", "attempts", "shard"]).to_pandas()
    visits["shard"] = visits["shard"].astype(str)
    visits["written"] = pc.equal(books["status"].cast(pa.string()), WRITTEN).to_numpy()
    visits = visits.sort_values(["key", "written", "attempts", "shard"], kind="stable")
    kept = visits.index[~visits["key"].duplicated(keep="last")]
    return books.take(pa.array(np.sort(kept)))


def read_ledger(store: Store, fingerprint: str, columns: Sequence[str] = SIDECAR_SCHEMA.names) -> pd.DataFrame:
    """Read all sidecars as `read_books` does."""
    books = read_books(store, fingerprint, columns)
    plain = [
        (name, books[name].cast(pa.string()) if name in REPETITIVE else books[name]) for name in books.column_names
    ]
    return pa.table(dict(plain)).to_pandas()


def read_seals(store: Store, shards: Sequence[str]) -> list[Seal]:
    """Read from the sidecars of shards, named without extension, what their tars are known by."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return list(pool.map(lambda shard: sidecar_seal(read_sidecar(store, f"{shard}.parquet", ["key"])), shards))


def _check_fingerprint(table: pa.Table, fingerprint: str, where: str) -> None:
    found = table.schema.metadata[b"fingerprint"].decode()
    if found != fingerprint:
        raise MismatchError(
            f"{where} was made with other settings (fingerprint {found}) than these ({fingerprint}): the format, the"
            " fbank or keep_audio differ. Use the same settings, or another root"
        )


@dataclass(frozen=True, eq=False)
class VisitPlan:
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
    books: pa.Table,
    clips_per_shard: int,
    retry: Collection[Kind] = (Kind.THROTTLED, Kind.TRANSIENT),
) -> VisitPlan:
    """Plan shards for the segments that were never visited, or failed in a way of the kinds in `retry`.

    segments: of `SEGMENT_SCHEMA`. books: the ledger's columns `BOOK_COLUMNS`. Never-visited segments come first, in
    their order, in full shards: those of a run that was cut off are planned as they were before.
    """
    place = places_of(segments["key"], books["key"])
    is_known = place >= 0
    again = pa.array([reason.value for reason in Reason if reason.kind in retry], pa.string())
    is_due = pc.and_(
        pc.is_in(books["reason"].cast(pa.string()), value_set=again),
        pc.not_equal(books["status"].cast(pa.string()), WRITTEN),
    ).to_numpy()
    attempts = np.zeros(len(segments), np.int32)
    attempts[is_known] = books["attempts"].to_numpy()[place[is_known]]
    is_again = is_known.copy()
    is_again[is_known] = is_due[place[is_known]]
    split = segments["split"].combine_chunks().indices.to_numpy() if len(segments) else np.zeros(0, np.int32)
    shards = []
    for code in dict.fromkeys(split.tolist()):
        for wanted in (~is_known, is_again):
            rows = np.flatnonzero(wanted & (split == code))
            shards += [rows[start : start + clips_per_shard] for start in range(0, len(rows), clips_per_shard)]
    return VisitPlan(segments, attempts, shards)
