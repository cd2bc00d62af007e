"""The books: what the sidecars say of each segment, and what is still to be visited."""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pyarrow as pa

from pipeline.errors import MismatchError
from pipeline.records import Kind, Reason, Segment, ShardPlan
from pipeline.shards import SIDECAR_SCHEMA, WRITTEN, Seal, digest_of, read_sidecar, sidecar_seal
from pipeline.storage import Store

NUM_READERS = 16
BOOK_COLUMNS = ["key", "split", "status", "reason", "attempts"]


def read_ledger(store: Store, fingerprint: str, columns: Sequence[str] = SIDECAR_SCHEMA.names) -> pd.DataFrame:
    """Read all sidecars into one table with a row per key, with the column `shard` added.

    A key that was visited more than once counts as written if it was written, else by its last visit. Raises
    MismatchError if a shard was made with other settings than those of `fingerprint`.
    """
    names = store.list("shards", ".parquet")

    def read(name: str) -> pd.DataFrame:
        table = read_sidecar(store, name, list(columns))
        _check_fingerprint(table, fingerprint, store.url(name))
        return table.to_pandas().assign(shard=name.removesuffix(".parquet"))

    if not names:
        return SIDECAR_SCHEMA.empty_table().to_pandas()[list(columns)].assign(shard=pd.Series(dtype=str))
    with ThreadPoolExecutor(NUM_READERS) as pool:
        books = pd.concat(pool.map(read, names), ignore_index=True)
    books["_rank"] = books["status"].eq(WRITTEN)
    books = books.sort_values(["key", "_rank", "attempts", "shard"], kind="stable", ignore_index=True)
    return books.drop_duplicates("key", keep="last", ignore_index=True).drop(columns="_rank")


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


def plan_shards(
    segments: Sequence[Segment],
    books: pd.DataFrame,
    clips_per_shard: int,
    retry: Collection[Kind] = (Kind.THROTTLED, Kind.TRANSIENT),
) -> list[ShardPlan]:
    """Plan shards for the segments that were never visited, or failed in a way of the kinds in `retry`.

    books: the ledger's columns `BOOK_COLUMNS`. Never-visited segments come first, in their order, in full shards:
    those of a run that was cut off are planned as they were before.
    """
    attempts = list(_attempts_due(segments, books, retry))
    plans: list[ShardPlan] = []
    for split in dict.fromkeys(segment.split for segment in segments):
        due = [(s, n) for s, n in zip(segments, attempts, strict=True) if s.split == split and n is not None]
        fresh = [(segment, n) for segment, n in due if n == 0]
        again = [(segment, n) for segment, n in due if n > 0]
        for group in (fresh, again):
            for start in range(0, len(group), clips_per_shard):
                plans.append(_plan(split, group[start : start + clips_per_shard]))
    return plans


def _attempts_due(segments: Sequence[Segment], books: pd.DataFrame, retry: Collection[Kind]) -> Iterator[int | None]:
    """Yield for each segment the attempts made so far, or None if it needs no visit."""
    again = {reason.value for reason in Reason if reason.kind in retry}
    due = books["attempts"].where(books["reason"].isin(again) & books["status"].ne(WRITTEN), -1)
    known = pd.Series(due.to_numpy(), index=pd.Index(books["key"]))
    for attempts in known.reindex([segment.key for segment in segments], fill_value=0):
        yield None if attempts < 0 else int(attempts)


def _plan(split: str, group: Sequence[tuple[Segment, int]]) -> ShardPlan:
    segments, attempts = zip(*group, strict=True)
    shard_id = digest_of([[segment.key, segment.end_ms, n] for segment, n in group])
    return ShardPlan(shard_id, split, segments, attempts)
