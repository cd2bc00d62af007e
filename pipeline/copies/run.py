"""Convert all containers of a copy to shards, in Ray tasks."""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.cluster.tasks import run_tasks
from pipeline.config import PreprocessConfig
from pipeline.copies.containers import Container, Copy
from pipeline.copies.convert import ContainerReport, CopyConversion, convert_container, count_stored_parts
from pipeline.copies.coverage import Coverage, DueContainers, describe_coverage, estimate_coverage, find_due_containers
from pipeline.copies.hub import pin_commit
from pipeline.copies.segment_index import MAX_EXAMPLES, Matches, SegmentIndex
from pipeline.errors import AudioTaggingError, InputError, LeaseError, SourceError, quote
from pipeline.progress import show_progress
from pipeline.records import ShardReport
from pipeline.sources.archives import READ_ERRORS

log = logging.getLogger(__name__)
MIN_SHARE_MATCHED = 0.05
"""Minimum share of the members that must match a segment, or of the segments if there are fewer segments than members.
A lower share means that the names were misread."""
MIN_EXPECTED = 20
"""The heads are only checked if at least this many matches are expected."""


def convert_copy(
    copy: Copy,
    work: CopyConversion,
    config: PreprocessConfig,
    add_report: Callable[[ShardReport], None],
    check_lease: Callable[[], None],
) -> None:
    """Convert the due clips of a copy. Each container with due clips is read once.

    Reading stops once every due segment has been stored. Raises InputError if hardly any member matches a segment or if
    containers could not be read, and SourceError if the source refuses access or throttles for
    `--rate-limit.max-idle-s`. The clips of all other containers are stored before the error is raised.
    """
    due = find_due_containers(copy.containers, work.segments, work.conversion.store)
    coverage = estimate_coverage(due, work.segments)
    log.info("copy: %s", "; ".join(describe_coverage(copy, due, coverage, work.segments)))
    check_heads(coverage, work.segments)
    reading = CopyReading(due, work)
    with show_progress("read containers", sum(each.num_bytes for each in due.containers) >> 20, "MB") as progress:
        for container, report in reading.run(config):
            check_lease()
            if isinstance(report, LeaseError | SourceError):  # every other container would fail as well
                raise report
            if isinstance(report, ContainerReport):
                for shard in report.shards:
                    add_report(shard)
            reading.add(container, report)
            progress.advance(container.num_bytes >> 20, f"{reading.matches.num_matched} clips matched")
    reading.check()
    warn_if_moved(copy)


class CopyReading:
    """Reads the containers of a copy as Ray tasks, and remembers which due clips are left."""

    def __init__(self, due: DueContainers, work: CopyConversion) -> None:
        self.work, self.containers = work, due.containers
        self.is_left = work.segments.is_due.copy()
        self.matches = Matches(num_matched=len(due.listed_rows))
        self.errors: list[str] = []
        self.num_wanted = self.num_read = 0

    def run(self, config: PreprocessConfig) -> Iterator[tuple[Container, ContainerReport | Exception]]:
        """Yield containers with their reports, until every due clip is stored or the source throttles for too long."""

        def should_stop(wait_s: float) -> bool:
            return self.work.limiter.status().idle_s + wait_s > config.rate_limit.max_idle_s

        yield from run_tasks(
            convert_container,
            self._wanted(),
            self.work,
            max_in_flight=config.max_in_flight,
            should_stop=should_stop,
            progress_of=partial(count_stored_parts, work=self.work),
        )

    def _wanted(self) -> Iterator[Container]:
        for container in self.containers:
            if not self.is_left.any():
                return
            self.num_wanted += 1
            yield container

    def add(self, container: Container, report: ContainerReport | Exception) -> None:
        """Add the result of a container."""
        self.num_read += 1
        if isinstance(report, Exception):
            if not isinstance(report, AudioTaggingError):
                log.error("%s: %s: %s", container.address, type(report).__name__, report)
            self.errors.append(f"{container.address}: {report}")
            return
        self.matches += report.matches
        self.is_left[list(report.rows)] = False  # not a count, since several containers may hold a clip
        if report.error:
            self.errors.append(report.error)

    def check(self) -> None:
        """Raise SourceError if containers were left unread, InputError if names were misread or containers failed."""
        if self.num_read < self.num_wanted:
            raise SourceError(
                f"{self.num_wanted - self.num_read} containers were not read: the source throttled for"
                f" {self.work.limiter.status().idle_s:.0f} s. Finished clips are stored; run the same command again"
                " later"
            )
        matches, segments = self.matches, self.work.segments
        num_members = matches.num_matched + matches.num_unmatched
        if matches.num_unmatched:
            log.info("%d members match no segment, such as %s", matches.num_unmatched, quote(matches.examples[0]))
        check_matches(matches, segments, min(num_members, len(segments)))
        if self.errors:
            more = f" and {len(self.errors) - 1} more" if len(self.errors) > 1 else ""
            raise InputError(
                f"{len(self.errors)} containers could not be read: {self.errors[0]}{more}; the same command retries"
                " them"
            )


def warn_if_moved(copy: Copy) -> None:
    """Warn if a repository on the hub received a new commit during the run."""
    for root, pinned in copy.commits:
        with suppress(*READ_ERRORS):  # all clips are stored, and the next run lists the repository again
            now = pin_commit(root)[1]
            if now != pinned:
                log.warning(
                    "%s has changed during this run, which read %s; the next run reads the changes", root, pinned
                )


def check_heads(coverage: Coverage, segments: SegmentIndex) -> None:
    """Raise InputError, before any container is read, if hardly any name in the heads matches a segment."""
    matches = coverage.matches
    num_members = matches.num_matched + matches.num_unmatched
    # If the run has few segments, a head contains only few of them.
    num_expected = num_members * min(1.0, len(segments) / max(coverage.num_members, 1))
    if num_expected >= MIN_EXPECTED:
        check_matches(matches, segments, num_expected)


def check_matches(matches: Matches, segments: SegmentIndex, num_expected: float) -> None:
    """Raise InputError, which quotes found and expected names, if there are far fewer matches than expected."""
    if matches.num_matched >= MIN_SHARE_MATCHED * num_expected:
        return
    num_members = matches.num_matched + matches.num_unmatched
    rows = np.linspace(0, len(segments) - 1, min(MAX_EXAMPLES, len(segments))).astype(int)
    expected = ", ".join(segments.segments["key"].take(pa.array(rows)).to_pylist())
    raise InputError(
        f"{matches.num_matched} of {num_members} members of the copy match a segment, so no clip is recorded as"
        f" missing. Found names such as {quote(', '.join(matches.examples))}; expected ids (and starts) such as"
        f" {expected}. Describe the names with --id-pattern, a regular expression with a group `id`, such as"
        " '(?P<id>[\\w-]{11})\\.flac$'"
    )
