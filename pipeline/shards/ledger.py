"""Read all sidecars into one table, and plan shards for the segments that are due."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import FetchConfig
from pipeline.errors import MismatchError
from pipeline.keys import has_repeats, identities_of, positions_of
from pipeline.records import FailureCategory, Reason, ShardPlan
from pipeline.segments import segments_of
from pipeline.shards.checksum import Checksum
from pipeline.shards.format import SIDECAR_SCHEMA, WRITTEN, digest_of, read_sidecar, sidecar_checksum
from pipeline.store.layout import SHARDS, SIDECAR, Shard
from pipeline.store.storage import Store

NUM_READERS = 16
"""Number of threads that read from a remote store, to hide its latency. Local stores are read fastest with four
threads, because of the GIL."""
NUM_LOCAL_READERS = 4
SIDECAR_COLUMNS = ["key", "end_ms", "status", "reason", "attempts"]
TRANSIENT_REASONS = pa.array([reason.value for reason in Reason if reason.category is FailureCategory.TRANSIENT])
LACKING_SOURCE = pa.field("lacking_source", pa.string())
"""Column with a digest of the sources that lack a clip. It is null unless the clip is `missing_in_source`."""
REPETITIVE = ("split", "status", "reason", "lacking_source")


def read_sidecar_table(store: Store, fingerprint: str, columns: Sequence[str] = SIDECAR_COLUMNS) -> pa.Table:
    """Read all sidecars into one table with a row per key and end.

    Adds two columns: `shard` is the path of the tar, and `lacking_source` is the digest of the sources that lack the
    clip. If a clip has several rows, the table contains the row of the written clip or, if it was never written, the
    row of its last attempt. Raises MismatchError if a shard has another fingerprint.
    """
    names = store.list(SHARDS, SIDECAR)

    def read(name: str) -> pa.Table:
        table = read_sidecar(store, name, list(columns))
        if "source" not in columns and pc.any(pc.equal(table["reason"], Reason.MISSING_IN_SOURCE.value)).as_py():
            sources = read_sidecar(store, name, ["source"])["source"]
            table = table.append_column("lacking_source", _sources_of_missing(table["reason"], sources))
        _check_fingerprint(table, fingerprint, store.url(name))
        return table.replace_schema_metadata(None)

    with ThreadPoolExecutor(num_readers(store)) as pool:
        tables = list(pool.map(read, names))
    empty = pa.schema([*(SIDECAR_SCHEMA.field(name) for name in columns), LACKING_SOURCE]).empty_table()
    sidecar_table = pa.concat_tables([empty, *tables], promote_options="default").combine_chunks()
    # Encode the columns after joining them. Encoding the small columns of each sidecar would take longer than reading
    # them.
    for place, name in enumerate([*columns, LACKING_SOURCE.name]):
        if name in REPETITIVE:
            sidecar_table = sidecar_table.set_column(place, name, sidecar_table[name].dictionary_encode())
    codes = np.repeat(np.arange(len(names), dtype=np.int32), [len(table) for table in tables])
    tars = pa.array([Shard.of(name).tar for name in names], pa.string())
    sidecar_table = sidecar_table.append_column("shard", pa.DictionaryArray.from_arrays(codes, tars))
    return _latest_attempts(sidecar_table)


def _sources_of_missing(reasons: pa.ChunkedArray, sources: pa.ChunkedArray) -> pa.ChunkedArray:
    is_missing = pc.equal(reasons, Reason.MISSING_IN_SOURCE.value)
    return pc.if_else(is_missing, sources, pa.scalar(None, pa.string()))


def num_readers(store: Store) -> int:
    return NUM_LOCAL_READERS if store.is_local else NUM_READERS


def _latest_attempts(sidecar_table: pa.Table) -> pa.Table:
    # Most stores have no repeats. Return early, because the sort below is slow.
    identities = identities_of(sidecar_table)
    if not has_repeats(identities):
        return sidecar_table
    rows = sidecar_table.select(["attempts", "shard"]).to_pandas()
    rows["shard"] = rows["shard"].astype(str)
    rows["identity"] = identities.to_pandas()
    rows["written"] = pc.equal(sidecar_table["status"].cast(pa.string()), WRITTEN).to_numpy()
    # Break ties by the shard's name, so that every reader chooses the same row.
    rows = rows.sort_values(["identity", "written", "attempts", "shard"], kind="stable")
    kept = rows.index[~rows["identity"].duplicated(keep="last")]
    return sidecar_table.take(pa.array(np.sort(kept)))


def match_segments(segments: pa.Table, sidecar_table: pa.Table) -> np.ndarray:
    """Return the sidecar row of each segment (N,), or -1 if the segment was never attempted with its current start and
    end."""
    return positions_of(identities_of(segments), identities_of(sidecar_table))


def read_checksums(store: Store, tars: Sequence[str]) -> dict[str, Checksum]:
    """Read the checksums of the given tars from their sidecars."""
    sidecars = [Shard.of(tar).sidecar for tar in tars]
    with ThreadPoolExecutor(num_readers(store)) as pool:
        checksums = pool.map(lambda name: sidecar_checksum(read_sidecar(store, name, ["key"])), sidecars)
        return dict(zip(tars, checksums, strict=True))


def _check_fingerprint(table: pa.Table, fingerprint: str, where: str) -> None:
    found = table.schema.metadata[b"fingerprint"].decode()
    if found != fingerprint:
        raise MismatchError(
            f"expected {where} to have the settings of this run (fingerprint {fingerprint}), found {found}: the format,"
            " the fbank or --keep-audio differ. Use the same settings, or another root"
        )


@dataclass(frozen=True, eq=False)
class PreprocessPlan:
    """The segments that are due, grouped into shards. Iterating over the plan creates one shard plan at a time."""

    segments: pa.Table
    attempts: np.ndarray
    """Number of attempts at each segment so far (N,)."""
    shards: Sequence[np.ndarray]
    """The rows of `segments` that form each shard."""

    @property
    def num_segments(self) -> int:
        return sum(map(len, self.shards))

    def __len__(self) -> int:
        return len(self.shards)

    def __iter__(self) -> Iterator[ShardPlan]:
        for rows in self.shards:
            segments = tuple(segments_of(self.segments.take(pa.array(rows))))
            attempts = tuple(int(count) for count in self.attempts[rows])
            # Include the attempts in the shard's name, so that each retry of a clip goes into a new shard.
            planned = [[segment.key, segment.end_ms, count] for segment, count in zip(segments, attempts, strict=True)]
            yield ShardPlan(Shard(segments[0].split, digest_of(planned)), segments, attempts)


def plan_shards(
    segments: pa.Table,
    sidecar_table: pa.Table,
    clips_per_shard: int,
    retry: Collection[FailureCategory] = (FailureCategory.THROTTLED, FailureCategory.TRANSIENT),
    max_attempts: int = FetchConfig.max_total_attempts,
    sources_digest: str = "",
) -> PreprocessPlan:
    """Plan shards for new segments and for failed segments with a category in `retry`.

    New segments come first, in their original order. A segment whose end was corrected counts as new. Retries come
    afterwards and start with the rarest classes: a run may be stopped early, and each clip of a rare class matters.
    Transient failures are not retried after `max_attempts` attempts.

    segments: a table of `SEGMENT_SCHEMA`.
    sidecar_table: from `read_sidecar_table`, with `SIDECAR_COLUMNS`.
    sources_digest: digest of the current sources. If a clip was missing in sources with another digest, it is due
    again.
    """
    rows = match_segments(segments, sidecar_table)
    is_known = rows >= 0
    attempts = np.zeros(len(segments), np.int32)
    attempts[is_known] = sidecar_table["attempts"].to_numpy()[rows[is_known]]
    is_due_again = find_retries(rows, sidecar_table, retry, max_attempts)
    is_due_again |= _is_missing_elsewhere(rows, sidecar_table, sources_digest)
    rarity = _count_rarest_class(segments)
    split = segments["split"].combine_chunks().indices.to_numpy() if len(segments) else np.zeros(0, np.int32)
    shards = []
    for code in dict.fromkeys(split.tolist()):
        # Never mix new and failed segments in one shard. If a run is interrupted, its remaining shards then keep their
        # names, and the next run finds their journals.
        for is_due in (~is_known, is_due_again):
            due = np.flatnonzero(is_due & (split == code))
            if is_due is is_due_again:
                due = due[np.argsort(rarity[due], kind="stable")]
            shards += [due[start : start + clips_per_shard] for start in range(0, len(due), clips_per_shard)]
    return PreprocessPlan(segments, attempts, shards)


def find_retries(
    rows: np.ndarray, sidecar_table: pa.Table, retry: Collection[FailureCategory], max_attempts: int
) -> np.ndarray:
    """Return a mask (N,) of the segments that failed with a category in `retry` and have attempts left.

    rows: sidecar rows of the segments (N,), from `match_segments`.
    """
    status, reason = sidecar_table["status"].cast(pa.string()), sidecar_table["reason"].cast(pa.string())
    retryable = pa.array([reason.value for reason in Reason if reason.category in retry], pa.string())
    # Limit only transient failures. Throttling is not the clip's fault, and the other categories are only retried if
    # the user requests it.
    is_used_up = pc.and_(
        pc.is_in(reason, value_set=TRANSIENT_REASONS), pc.greater_equal(sidecar_table["attempts"], max_attempts)
    )
    is_retryable = pc.and_(pc.is_in(reason, value_set=retryable), pc.not_equal(status, WRITTEN))
    is_due_again = rows >= 0
    is_due_again[is_due_again] = pc.and_not(is_retryable, is_used_up).to_numpy()[rows[is_due_again]]
    return is_due_again


def _is_missing_elsewhere(rows: np.ndarray, sidecar_table: pa.Table, sources_digest: str) -> np.ndarray:
    """Return a mask (N,) of the segments that were missing in sources with another digest."""
    is_due = rows >= 0
    lacking = sidecar_table["lacking_source"].cast(pa.string())
    is_elsewhere = pc.fill_null(pc.not_equal(lacking, sources_digest), False).to_numpy()
    is_due[is_due] = is_elsewhere[rows[is_due]]
    return is_due


def _count_rarest_class(segments: pa.Table) -> np.ndarray:
    """For each segment (N,), return the number of segments that have its rarest class."""
    labels = segments["labels"].combine_chunks()
    codes = labels.indices.to_numpy()
    class_sets = [text.split(",") for text in labels.dictionary.to_pylist()]
    counts: Counter[str] = Counter()
    for mids, count in zip(class_sets, np.bincount(codes, minlength=len(class_sets)).tolist(), strict=True):
        counts.update(dict.fromkeys(mids, count))
    return np.array([min(counts[mid] for mid in mids) for mids in class_sets], np.int64)[codes]
