"""The journal of an unfinished shard stores finished clips in small parts, so that a kill loses little work.

At 300 clips an hour, a shard of 1,000 clips takes hours, and its tar can only be published after the last clip. Each
part is published atomically and named by the number of clips before it. The journal is removed once the shard is
published.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from pipeline.errors import CorruptError, StoreError, describe
from pipeline.records import Segment
from pipeline.shards.format import ARROW_TYPES
from pipeline.store.lock import LeaseGuard
from pipeline.store.storage import Store

FOLDER = "parts"


@dataclass(frozen=True, slots=True)
class ClipResult:
    """The result of a segment, including the content of a written clip."""

    segment: Segment
    status: str
    attempts: int
    reason: str = ""
    detail: str = ""
    source: str = ""
    fbank: bytes = b""
    """Features as float16 (T, 128); empty for a failure."""
    audio: bytes = b""
    measures: bytes = b""
    """Encoded measures; empty in journals of older versions without measures."""


SEGMENT_NAMES = [each.name for each in fields(Segment)]
RESULT_FIELDS = [each for each in fields(ClipResult) if each.name != "segment"]
SCHEMA = pa.schema(
    [(each.name, ARROW_TYPES[each.type]) for each in fields(Segment)]
    + [(each.name, pa.binary() if each.type is bytes else ARROW_TYPES[each.type]) for each in RESULT_FIELDS]
)


@dataclass(frozen=True)
class Journal:
    """The journal of one shard."""

    store: Store
    fingerprint: str
    split: str
    shard_id: str
    lease: LeaseGuard | None = field(default=None, compare=False)
    """Checked before each write."""

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.fingerprint}/{self.split}/{self.shard_id}"

    def append(self, first: int, results: Sequence[ClipResult]) -> None:
        """Publish results as a part. first: number of clips before it. Raises LeaseError if the lease was lost."""
        rows = [
            {name: getattr(result.segment, name) for name in SEGMENT_NAMES}
            | {each.name: getattr(result, each.name) for each in RESULT_FIELDS}
            for result in results
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        if self.lease:
            self.lease.check()
        self.store.write_bytes(f"{self.folder}/{first:06d}.arrow", sink.getvalue().to_pybytes())

    def read(self) -> Iterator[ClipResult]:
        """Yield the stored results in order, up to a missing part.

        Clips are stored in the order of the plan, so fetching resumes after the stored clips. Clips after a missing
        part are fetched again, and their parts are replaced.
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
            for row in table.to_pylist():
                about: dict[str, Any] = {name: row.pop(name) for name in SEGMENT_NAMES}
                about["labels"] = tuple(about["labels"])
                yield ClipResult(Segment(**about), **row)
            num_read += len(table)

    def count_parts(self) -> int:
        """Return the number of stored parts, or 0 if the store can't list them."""
        with suppress(StoreError):
            return len(self.store.list(self.folder, ".arrow"))
        return 0

    def clear(self) -> None:
        if self.store.list(self.folder):
            self.store.remove(self.folder)


def partial_shards(store: Store, fingerprint: str) -> list[Journal]:
    """List the journals that killed runs left behind for shards with these settings."""
    shards = sorted({tuple(name.split("/")[2:4]) for name in store.list(f"{FOLDER}/{fingerprint}", ".arrow")})
    return [Journal(store, fingerprint, split, shard_id) for split, shard_id in shards]
