"""All containers of a copy → shards, as Ray tasks."""

# pyright: reportAttributeAccessIssue=false
# pyarrow creates its compute functions at import.

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster.tasks import run_tasks
from pipeline.config import PreprocessConfig
from pipeline.copies.containers import Container, Copy
from pipeline.copies.convert import ContainerReport, CopyConversion, convert_container, count_stored_parts
from pipeline.copies.hub import pin_commit
from pipeline.copies.listings import read_listing
from pipeline.copies.segment_index import MAX_EXAMPLES, Matches, SegmentIndex
from pipeline.errors import AudioTaggingError, InputError, LeaseError, SourceError, quote
from pipeline.progress import show_progress
from pipeline.records import ShardReport
from pipeline.sources.archives import READ_ERRORS

log = logging.getLogger(__name__)
NUM_READERS = 16
MIN_SHARE_MATCHED = 0.05
"""Lowest share of matches, of the members or of the segments, whichever are fewer. Below it names were misread."""


def convert_copy(
    copy: Copy,
    work: CopyConversion,
    config: PreprocessConfig,
    add_report: Callable[[ShardReport], None],
    check_lease: Callable[[], None],
) -> None:
    """Convert the due clips of a copy, reading each container with due clips once.

    Stops reading once every due segment is stored. Raises InputError if hardly any member matches a segment, or if
    containers could not be read, SourceError if the source refuses access or throttles for `--rate-limit.max-idle-s`.
    Clips of the other containers are stored by then.
    """
    containers, known = find_due_containers(copy.containers, work)
    log.info("copy: %s; %d containers may hold due clips", copy.describe(), len(containers))
    num_due, matches, errors = int(work.segments.is_due.sum()), Matches(num_matched=known), list[str]()
    num_read = num_wanted = 0

    def iterate_wanted() -> Iterator[Container]:
        nonlocal num_wanted
        for container in containers:
            if num_due <= 0:  # every due clip is stored
                return
            num_wanted += 1
            yield container

    def should_stop(wait_s: float) -> bool:
        return work.limiter.status().idle_s + wait_s > config.rate_limit.max_idle_s

    tasks = run_tasks(
        convert_container,
        iterate_wanted(),
        work,
        max_in_flight=config.max_in_flight,
        should_stop=should_stop,
        progress_of=partial(count_stored_parts, work=work),
    )
    with show_progress("read containers", sum(each.num_bytes for each in containers) >> 20, "MB") as progress:
        for container, report in tasks:
            check_lease()
            num_read += 1
            if isinstance(report, LeaseError | SourceError):  # all containers would fail
                raise report
            if isinstance(report, Exception):
                if not isinstance(report, AudioTaggingError):
                    log.error("%s: %s: %s", container.address, type(report).__name__, report)
                errors.append(f"{container.address}: {report}")
                continue
            matches += report.matches
            num_due -= _count(report, add_report, errors)
            progress.advance(container.num_bytes >> 20, f"{matches.num_matched} clips matched")
    if num_read < num_wanted:
        raise SourceError(
            f"{num_wanted - num_read} containers were not read: the source throttled for"
            f" {work.limiter.status().idle_s:.0f} s. Finished clips are stored; run the same command again later"
        )
    _check_matches(matches, work.segments)
    if errors:
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(
            f"{len(errors)} containers could not be read: {errors[0]}{more}; the same command retries them"
        )
    warn_if_moved(copy)


def warn_if_moved(copy: Copy) -> None:
    """Warn if a repository on the hub got a new commit during the run."""
    for root, pinned in copy.commits:
        with suppress(*READ_ERRORS):  # the clips are stored; the next run lists the repository anyway
            now = pin_commit(root)[1]
            if now != pinned:
                log.warning(
                    "%s has changed during this run, which read %s; the next run reads the changes", root, pinned
                )


def _count(report: ContainerReport, add_report: Callable[[ShardReport], None], errors: list[str]) -> int:
    """Add a container's shards to the run's report; return how many clips they decided."""
    for shard in report.shards:
        add_report(shard)
    if report.error:
        errors.append(report.error)
    return sum(shard.num_planned for shard in report.shards)


def find_due_containers(containers: Sequence[Container], work: CopyConversion) -> tuple[list[Container], int]:
    """Return the containers that may hold due clips, and the number of segments in all listings.

    A container that was never read to its end may hold any clip.
    """
    store, segments = work.conversion.store, work.segments
    due_keys = segments.segments["key"].filter(pa.array(segments.is_due)).combine_chunks()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        listings = pool.map(lambda container: read_listing(store, container, work.search), containers)
        due, num_known = [], 0
        for container, keys in zip(containers, listings, strict=True):
            num_known += 0 if keys is None else len(keys)
            if keys is None or pc.any(pc.is_in(keys, value_set=due_keys)).as_py():
                due.append(container)
    return due, num_known


def _check_matches(matches: Matches, segments: SegmentIndex) -> None:
    num_members = matches.num_matched + matches.num_unmatched
    if matches.num_unmatched:
        log.info(
            "%d members of the copy match no segment, such as %s", matches.num_unmatched, quote(matches.examples[0])
        )
    if matches.num_matched >= MIN_SHARE_MATCHED * min(num_members, len(segments)):
        return
    rows = np.linspace(0, len(segments) - 1, min(MAX_EXAMPLES, len(segments))).astype(int)
    expected = ", ".join(segments.segments["key"].take(pa.array(rows)).to_pylist())
    raise InputError(
        f"{matches.num_matched} of {num_members} members of the copy match a segment, so no clip is recorded as"
        f" missing. Found names such as {quote(', '.join(matches.examples))}; expected ids (and starts) such as"
        f" {expected}. Describe the names with --id-pattern, a regular expression with a group `id`, such as"
        " '(?P<id>[\\w-]{11})\\.flac$'"
    )
