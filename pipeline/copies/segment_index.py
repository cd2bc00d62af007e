"""Segments by the names of a copy's members."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import.

import re
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Segment
from pipeline.segments import segments_of
from pipeline.shards.format import digest_of
from pipeline.sources.names import readings_of, start_matches

MAX_EXAMPLES = 10


@dataclass(frozen=True, eq=False)
class SegmentIndex:
    """Segments by id, in arrays: tasks share them through Ray's object store without a copy."""

    segments: pa.Table
    """Of `SEGMENT_SCHEMA`."""
    is_due: np.ndarray
    """Mask (N,) of segments that this run needs. The others tell unknown members from clips that are stored already."""
    attempts: np.ndarray
    """Attempts so far at each segment (N,)."""
    ids: np.ndarray = field(init=False)
    """Sorted ids (N,), as bytes."""
    order: np.ndarray = field(init=False)
    """Row of each sorted id (N,)."""

    def __post_init__(self) -> None:
        ids = pc.replace_substring_regex(self.segments["key"], r"_\d+$", "").to_numpy().astype(np.bytes_)
        order = np.argsort(ids, kind="stable")
        object.__setattr__(self, "ids", ids[order])
        object.__setattr__(self, "order", order)

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def digest(self) -> str:
        """Digest of the due segments, so that runs with other due segments name their shards differently."""
        due = self.segments.filter(pa.array(self.is_due)).select(["key", "end_ms"])
        names = [f"{key} {end}" for key, end in zip(*due.to_pydict().values(), strict=True)]
        return digest_of([names, self.attempts[self.is_due].tolist()])

    def find(self, stem: str, pattern: re.Pattern[str] | None = None) -> int | None:
        """Return the row of the segment that a member's name means, None if no due segment fits it."""
        for ytid, start, _ in readings_of(stem, pattern):
            first, end = (
                np.searchsorted(self.ids, ytid.encode(), "left"),
                np.searchsorted(self.ids, ytid.encode(), "right"),
            )
            for row in self.order[first:end]:
                if start_matches(start, self.segments["start_ms"][int(row)].as_py()):
                    return int(row)
        return None

    def segment(self, row: int) -> Segment:
        """Return one segment as an object."""
        return next(iter(segments_of(self.segments.slice(row, 1))))


@dataclass
class Matches:
    """Counts of members by whether a segment of the tables fits them."""

    num_matched: int = 0
    num_unmatched: int = 0
    examples: list[str] = field(default_factory=list)
    """Names of the first unmatched members."""

    def add(self, name: str, *, is_match: bool) -> None:
        self.num_matched += is_match
        self.num_unmatched += not is_match
        if not is_match and len(self.examples) < MAX_EXAMPLES:
            self.examples.append(name)

    def __iadd__(self, other: "Matches") -> "Matches":
        self.num_matched += other.num_matched
        self.num_unmatched += other.num_unmatched
        self.examples = [*self.examples, *other.examples][:MAX_EXAMPLES]
        return self
