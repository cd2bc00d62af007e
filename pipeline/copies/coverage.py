"""Estimate which segments a copy contains, using its listings and the first members of a few containers."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa

from pipeline.copies.containers import Container, Copy
from pipeline.copies.heads import Head, read_head
from pipeline.copies.listings import read_listing
from pipeline.copies.refusals import check_access
from pipeline.copies.segment_index import Matches, SegmentIndex
from pipeline.errors import InputError, describe
from pipeline.keys import positions_of
from pipeline.sources.archives import READ_ERRORS
from pipeline.store.storage import Store

log = logging.getLogger(__name__)
NUM_READERS = 16
MIN_HEADS, MAX_GROUPS = 2, 16
"""Number of heads to read in each group of similar containers, and maximum number of groups. If there are more groups,
all containers form a single group."""
T = TypeVar("T")


@dataclass(frozen=True)
class DueContainers:
    """The containers of a copy that may contain due clips."""

    containers: list[Container]
    unread: list[Container]
    """Containers without a listing. They were never read to their end and may contain any clip."""
    listed_rows: np.ndarray
    """Rows (N,) of the segments that occur in the listings."""


@dataclass
class Coverage:
    """The estimated segments of a copy. The heads of a few containers represent all containers without a listing."""

    clips: Counter[str] = field(default_factory=Counter)
    """Number of segments in each split."""
    num_due: int = 0
    """Number of these segments that are due."""
    matches: Matches = field(default_factory=Matches)
    """The matches between segments and the members in the heads."""
    num_members: int = 0
    """Number of members in all containers without a listing."""


def find_due_containers(containers: Sequence[Container], segments: SegmentIndex, store: Store) -> DueContainers:
    """Find the containers that may contain due clips, using the listings."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        listings = list(pool.map(lambda container: read_listing(store, container, segments.search), containers))
    keys = pa.chunked_array([each for each in listings if each is not None], pa.string())
    # Use a single lookup for all listings. Building a table of two million due keys for each container would take
    # minutes.
    rows = positions_of(keys, segments.segments["key"])
    is_due = (rows >= 0) & segments.is_due[rows]
    number = np.repeat(np.arange(len(listings)), [0 if each is None else len(each) for each in listings])
    num_due = np.bincount(number, is_due, len(listings))
    due = [
        container
        for container, listing, count in zip(containers, listings, num_due, strict=True)
        if listing is None or count
    ]
    unread = [container for container, listing in zip(containers, listings, strict=True) if listing is None]
    return DueContainers(due, unread, rows[rows >= 0])


def estimate_coverage(due: DueContainers, segments: SegmentIndex) -> Coverage:
    """Count the segments in the listings, and estimate the other segments from the first members of a few containers.

    If a head is unreadable, a message is logged. Raises SourceError if the source refuses access.
    """
    splits = segments.segments["split"].combine_chunks()
    names = splits.dictionary.to_pylist()
    counts = np.bincount(splits.indices.to_numpy()[due.listed_rows], minlength=len(names)).astype(float)
    num_due = float(segments.is_due[due.listed_rows].sum())
    matches, num_members = Matches(), 0.0
    groups = group_alike(due.unread)
    num_heads = max(MIN_HEADS, MAX_GROUPS // max(len(groups), 1))
    for group in groups:
        heads = read_heads(_spread(group, num_heads))
        stems = [stem for _, head in heads for stem in head.stems]
        sampled_bytes = sum(container.num_bytes for container, _ in heads)
        if not stems or not sampled_bytes:
            continue
        group_bytes = sum(container.num_bytes for container in group)
        num_in_group = sum(head.num_members for _, head in heads) * group_bytes / sampled_bytes
        rows = [segments.find(stem) for stem in stems]
        for stem, row in zip(stems, rows, strict=True):
            matches.add(stem, is_match=row is not None)
        found = np.array([row for row in rows if row is not None], np.int64)
        num_members += num_in_group
        counts += num_in_group / len(stems) * np.bincount(splits.indices.to_numpy()[found], minlength=len(names))
        num_due += num_in_group / len(stems) * segments.is_due[found].sum()
    planned = np.bincount(splits.indices.to_numpy(), minlength=len(names))
    clips = Counter({name: int(min(count, most)) for name, count, most in zip(names, counts, planned, strict=True)})
    return Coverage(clips, int(min(num_due, segments.is_due.sum())), matches, int(num_members))


def group_alike(containers: Sequence[Container]) -> list[list[Container]]:
    """Group containers whose addresses only differ in their digits, because publishers number the parts of a split."""
    groups: dict[str, list[Container]] = defaultdict(list)
    for container in containers:
        groups[re.sub(r"\d+", "", container.address)].append(container)
    return list(groups.values()) if len(groups) <= MAX_GROUPS else [list(containers)]


def read_heads(containers: Sequence[Container]) -> list[tuple[Container, Head]]:
    """Read the heads of containers concurrently. Unreadable containers are skipped."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        heads = pool.map(_try_head, containers)
        return [(container, head) for container, head in zip(containers, heads, strict=True) if head]


def _try_head(container: Container) -> Head | None:
    try:
        return read_head(container)
    except (InputError, *READ_ERRORS) as error:
        check_access(container.location, error)
        log.warning("can't read the start of %s: %s", container.address, describe(error))
        return None


def describe_coverage(copy: Copy, due: DueContainers, coverage: Coverage, segments: SegmentIndex) -> list[str]:
    """Describe the copy, its clips per split and the number of bytes to read. Returns lines of text."""
    splits = segments.segments["split"].combine_chunks()
    planned = Counter(splits.cast(pa.string()).to_pylist())
    about = "about " if due.unread else ""
    clips = ", ".join(f"{coverage.clips[name]:,} of {planned[name]:,} {name}" for name in planned)
    num_bytes = sum(container.num_bytes for container in due.containers)
    commits = "".join(f" at {pinned}" for _, pinned in copy.commits)
    return [
        f"{copy.describe()}{commits}",
        f"covers {about}{clips} segments",
        f"reads {len(due.containers)} of {len(copy.containers)} containers ({num_bytes / 1e9:.1f} GB) with"
        f" {about}{coverage.num_due:,} due clips",
    ]


def _spread(items: list[T], num: int) -> list[T]:
    """Choose at most `num` items that are evenly spaced."""
    places = np.unique(np.linspace(0, len(items) - 1, min(num, len(items))).astype(int))
    return [items[place] for place in places]
