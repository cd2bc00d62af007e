"""Encode and decode Parquet files in memory."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def parquet_bytes(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file."""
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode a Parquet file in the calling thread.

    `pq.read_table` scans files with threads of Arrow, which may release Python's memory a moment after the table is
    complete. If the interpreter exits in that moment, Python ends the thread within a destructor, and C++ aborts the
    process: "terminate called without an active exception". One thread also takes half the CPU time.
    """
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return file.read(list(columns) if columns is not None else None, use_threads=False)
