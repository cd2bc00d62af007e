"""Find the segments that the members of a copy contain, by the members' names."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import, so pyright does not see them.

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Segment
from pipeline.segments import segments_of
from pipeline.shards.format import digest_of
from pipeline.shards.ledger import PreprocessPlan
from pipeline.sources.names import compile_pattern, readings_of, start_matches

MAX_EXAMPLES = 10


@dataclass(frozen=True, eq=False)
class SegmentIndex:
    """An index of segments by id. It consists of arrays that tasks share through Ray's object store without copying
    them."""

    segments: pa.Table
    """The segments, as a table of `SEGMENT_SCHEMA`."""
    is_due: np.ndarray
    """Mask (N,) of the segments that this run needs. The other segments are indexed to tell stored clips from unknown
    members."""
    attempts: np.ndarray
    """Number of attempts at each segment so far (N,)."""
    id_pattern: str = ""
    """Regular expression from `--id-pattern`, for names that follow none of the known naming schemes."""
    ids: np.ndarray = field(init=False)
    """Sorted ids (N,), as bytes."""
    order: np.ndarray = field(init=False)
    """Row of each sorted id (N,)."""
    digest: str = field(init=False)
    """Digest of the due segments. It is part of the names of shards, so runs with other due segments write other
    shards."""
    search: str = field(init=False)
    """Digest of the segments and names that are searched for in containers."""

    def __post_init__(self) -> None:
        keys = self.segments["key"]
        ids = pc.replace_substring_regex(keys, r"_\d+$", "").to_numpy().astype(np.bytes_)
        order = np.argsort(ids, kind="stable")
        due = self.segments.filter(pa.array(self.is_due)).select(["key", "end_ms"])
        names = [f"{key} {end}" for key, end in zip(*due.to_pydict().values(), strict=True)]
        object.__setattr__(self, "ids", ids[order])
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "digest", digest_of([names, self.attempts[self.is_due].tolist()]))
        object.__setattr__(self, "search", digest_of([keys.to_pylist(), self.id_pattern]))

    def __len__(self) -> int:
        return len(self.segments)

    def find(self, stem: str) -> int | None:
        """Return the row of the segment that a member's name matches, or None."""
        for ytid, start, _ in readings_of(stem, compile_pattern(self.id_pattern)):
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


def index_due(plan: PreprocessPlan, id_pattern: str = "") -> SegmentIndex:
    """Index all segments of a plan. The segments in its shards are due."""
    is_due = np.zeros(len(plan.segments), bool)
    is_due[np.concatenate([*plan.shards, np.zeros(0, np.int64)])] = True
    return SegmentIndex(plan.segments, is_due, plan.attempts, id_pattern)


@dataclass
class Matches:
    """Numbers of members that match a segment and of members that match none."""

    num_matched: int = 0
    num_unmatched: int = 0
    examples: list[str] = field(default_factory=list)
    """Names of the first members that match no segment."""

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
