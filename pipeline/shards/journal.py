"""The journal of an unfinished shard. It stores finished clips in small parts, so that little work is lost if a run is
killed.

At 300 clips an hour, a shard of 1,000 clips takes hours, and its tar can only be published after the last clip. Each
part is published atomically, and its name is the number of clips before it. The journal is removed once the shard has
been published.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.errors import CorruptError, StoreError, describe
from pipeline.records import Reason, Segment
from pipeline.store.layout import JOURNALS, Shard
from pipeline.store.lock import LeaseGuard
from pipeline.store.storage import Store


@dataclass(frozen=True, slots=True)
class ClipResult:
    """The result of one segment. It includes the content of a written clip."""

    segment: Segment
    status: str
    attempts: int
    reason: Reason | None = None
    detail: str = ""
    source: str = ""
    fbank: bytes = b""
    """Features as float16 (T, 128). Empty for a failure."""
    audio: bytes = b""
    measures: dict[str, Any] | None = None
    """Fields of the clip's `Measures`. None for a failure or if an older version wrote the journal."""


@dataclass(frozen=True)
class Journal:
    """The journal of one shard."""

    store: Store
    fingerprint: str
    shard: Shard
    lease: LeaseGuard | None = field(default=None, compare=False)
    """The run's lease, which is checked before each write."""

    @property
    def folder(self) -> str:
        return self.shard.journal(self.fingerprint)

    def append(self, first: int, results: Sequence[ClipResult]) -> None:
        """Publish results as a part. first: number of clips in earlier parts. Raises LeaseError if the lease was
        lost."""
        table = pa.Table.from_pylist([_to_row(result) for result in results])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        if self.lease:
            self.lease.check()
        self.store.write_bytes(f"{self.folder}/{first:06d}.arrow", sink.getvalue().to_pybytes())

    def read(self) -> Iterator[ClipResult]:
        """Yield the stored results in order, up to the first missing part.

        Clips are stored in the order of the plan, so fetching can resume after the stored clips. If a part is missing,
        all clips from this part on are fetched again, and the later parts are replaced.
        """
        num_read = 0
        for name in self.store.list(self.folder, ".arrow"):
            if not name.endswith(f"/{num_read:06d}.arrow"):
                return
            try:
                table = pa.ipc.open_file(self.store.read_bytes(name)).read_all()
            except pa.ArrowInvalid as error:
                raise CorruptError(
                    f"{self.store.url(name)} is not a valid journal part: {describe(error)}; remove it and run again"
                ) from error
            yield from map(_from_row, table.to_pylist())
            num_read += len(table)

    def count_parts(self) -> int:
        """Return the number of stored parts, or 0 if the store can't list them."""
        with suppress(StoreError):
            return len(self.store.list(self.folder, ".arrow"))
        return 0

    def clear(self) -> None:
        if self.store.list(self.folder):
            self.store.remove(self.folder)


def _to_row(result: ClipResult) -> dict[str, Any]:
    row = asdict(result)
    return row.pop("segment") | row


def _from_row(row: dict[str, Any]) -> ClipResult:
    segment = Segment(
        ytid=row.pop("ytid"),
        start_ms=row.pop("start_ms"),
        end_ms=row.pop("end_ms"),
        labels=tuple(row.pop("labels")),
        split=row.pop("split"),
    )
    if not isinstance(row.get("measures"), dict):  # older versions omit or encode the measures: measure again
        row["measures"] = None
    reason = Reason(row["reason"]) if row["reason"] else None
    return ClipResult(segment, **{**row, "reason": reason})


def partial_shards(store: Store, fingerprint: str) -> list[Journal]:
    """List the journals left behind by killed runs with this fingerprint."""
    parts = store.list(f"{JOURNALS}/{fingerprint}", ".arrow")
    shards = sorted({Shard(*name.split("/")[2:4]) for name in parts})
    return [Journal(store, fingerprint, shard) for shard in shards]
