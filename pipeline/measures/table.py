"""Write and read the tables that contain the measures of a shard's written clips.

Conversion writes `quality/{split}/{shard_id}.parquet` before the shard's sidecar, and `preprocess.py measure` adds
missing tables. Shards and snapshots do not depend on these tables.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import CorruptError
from pipeline.measures.clip_measures import MEASURES_VERSION, MEDIA_NAMES, Measures
from pipeline.shards.ledger import num_readers
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import MEASURES, Shard
from pipeline.store.storage import Store
from pipeline.store.tables import parquet_bytes

MEASURES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("peak", pa.float32()),
        ("rms_db", pa.float32()),
        ("loudness_lufs", pa.float32()),
        ("clipping", pa.float32()),
        ("silence", pa.float32()),
        ("dc", pa.float32()),
        ("mix_db", pa.float32()),
        ("bandwidth_hz", pa.float32()),
        ("codec", pa.string()),
        ("rate_hz", pa.int32()),
        ("channels", pa.int16()),
        ("bit_rate", pa.int32()),
        ("media_length_s", pa.float32()),
        ("media_start_s", pa.float32()),
        ("fingerprint", pa.binary()),
    ]
)
NUMERIC_AND_TEXT = tuple(name for name in MEASURES_SCHEMA.names if name not in ("key", "fingerprint"))
FROM_MEDIA = tuple(MEDIA_NAMES)
"""Columns about the original media. To measure them again, the media would have to be fetched again."""
ADDED_COLUMNS = ("mix_db",)
"""Columns that were added without a new version. Older tables lack them, and their values are then null."""
VERSION_KEY = b"measures"
BLOCK_BYTES = 2**16
"""Number of bytes per read. Fingerprints are the last column and take nine tenths of a table, so most reads skip
them."""


def write_measures(store: Store, shard: Shard, keys: Sequence[str], measures: Sequence[Measures]) -> None:
    """Publish the measures of a shard's written clips, in the order of the shard."""
    names = MEASURES_SCHEMA.names[1:]
    columns = {name: [getattr(each, name) for each in measures] for name in names}
    schema = MEASURES_SCHEMA.with_metadata({VERSION_KEY: str(MEASURES_VERSION)})
    store.write_bytes(shard.measures, parquet_bytes(pa.table({"key": keys, **columns}, schema)))


def read_shard_measures(
    store: Store, shard: Shard, columns: Sequence[str] = NUMERIC_AND_TEXT, *, any_version: bool = False
) -> pa.Table | None:
    """Read the key and the given columns of a shard's measures.

    Returns None if the table has another version, unless `any_version` is set. Raises StoreError if the table is
    missing, and CorruptError if it is invalid.
    """
    name, columns = shard.measures, ["key", *columns]
    try:
        try:
            with store.open(name, BLOCK_BYTES) as stream:
                return _read_table(stream, columns, any_version)
        except OSError:  # either the connection or the file is broken: read it again to find out
            return _read_table(pa.BufferReader(store.read_bytes(name)), columns, any_version)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptError(
            f"{store.url(name)} is not a valid table of measures: {error}; `preprocess.py measure` rebuilds it"
        ) from error


def _read_table(stream: BinaryIO | pa.NativeFile, columns: list[str], any_version: bool) -> pa.Table | None:
    with pq.ParquetFile(stream, pre_buffer=False) as file:  # see `read_parquet`; buffering starts threads
        version = (file.schema_arrow.metadata or {}).get(VERSION_KEY)
        if version != str(MEASURES_VERSION).encode() and not any_version:
            return None
        missing = set(columns) - set(file.schema_arrow.names)
        if lost := missing.difference(ADDED_COLUMNS):
            raise ValueError(f"it lacks {', '.join(sorted(lost))}")
        stored = [name for name in columns if name not in missing]
        table = file.read(stored, use_threads=False).replace_schema_metadata(None)
    table.validate(full=True)  # without this, invalid UTF-8 only raises when a row is read
    for name in missing:
        field = MEASURES_SCHEMA.field(name)
        table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(columns)


def read_measures(snapshot: Snapshot, columns: Sequence[str] = NUMERIC_AND_TEXT) -> pa.Table:
    """Read columns of `MEASURES_SCHEMA` for all clips, in the order of a snapshot's index. Clips without measures have
    nulls."""
    store, index = snapshot.store, snapshot.index
    present = set(store.list(MEASURES, ".parquet"))
    schema = pa.schema([MEASURES_SCHEMA.field(name) for name in columns])
    keys, shards = index["key"].combine_chunks(), index["shard"].combine_chunks()
    codes, names = shards.indices.to_numpy(), shards.dictionary.to_pylist()
    # Group the rows by shard, so that each lookup only covers the thousand clips of one shard.
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(names) + 1))

    def read(code: int) -> pa.Table:
        rows, shard = order[ends[code] : ends[code + 1]], Shard.of(names[code])
        is_there = len(rows) and shard.measures in present
        found = read_shard_measures(store, shard, columns) if is_there else None
        if found is None:
            return pa.table([pa.nulls(len(rows), field.type) for field in schema], schema)
        places = pc.index_in(keys.take(pa.array(rows)), value_set=found["key"].combine_chunks())
        return found.select(list(columns)).take(places).cast(schema)

    with ThreadPoolExecutor(num_readers(store)) as pool:
        tables = list(pool.map(read, range(len(names))))
    table = pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
    return table.take(pa.array(np.argsort(order, kind="stable")))
