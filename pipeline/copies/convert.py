"""Convert the clips in a container that are due to shards."""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

from pipeline.backoff import backoff
from pipeline.convert import Conversion, convert_clip, report_of_existing, write_shard
from pipeline.copies.containers import Container
from pipeline.copies.listings import write_listing
from pipeline.copies.members import Member, read_members
from pipeline.copies.refusals import check_access, throttling_of
from pipeline.copies.segment_index import Matches, SegmentIndex
from pipeline.errors import InputError, StoreError, describe
from pipeline.records import CLIPS_PER_PART, Media, Segment, ShardPlan, ShardReport
from pipeline.shards.format import digest_of, read_sidecar
from pipeline.shards.journal import ClipResult, Journal
from pipeline.sources.archives import READ_ERRORS
from pipeline.sources.fetch import MAX_BACKOFF_S, SHORT_COOLDOWN_S
from pipeline.sources.rate_limit import LocalRateLimiter, Permit, RateLimiter, Wait
from pipeline.store.layout import Shard

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CopyConversion:
    """The objects and settings that tasks need to convert containers to shards. Tasks share them through Ray's object
    store."""

    conversion: Conversion
    segments: SegmentIndex
    clips_per_shard: int
    limiter: RateLimiter = field(default_factory=LocalRateLimiter)
    """Rate limiter for the addresses that read the copy. They cool down if the copy throttles them."""


@dataclass
class ContainerReport:
    """The result of reading one container."""

    container: Container
    shards: list[ShardReport] = field(default_factory=list)
    matches: Matches = field(default_factory=Matches)
    rows: set[int] = field(default_factory=set)
    """Rows of the due segments that the container holds."""
    error: str = ""
    """The reason why the container could not be read to its end. Empty if it was read completely."""


@dataclass
class Group:
    """The clips of one unfinished shard. They all belong to the same split and are in the order of the container."""

    journal: Journal
    segments: list[Segment]
    """All segments of the shard so far, both stored and pending."""
    pending: list[ClipResult] = field(default_factory=list)

    def add(self, result: ClipResult) -> None:
        self.segments.append(result.segment)
        self.pending.append(result)
        if len(self.pending) == CLIPS_PER_PART:
            self.flush()

    def flush(self) -> None:
        """Publish the pending clips, so that a killed task loses at most one part."""
        if self.pending:
            self.journal.append(len(self.segments) - len(self.pending), self.pending)
            self.pending = []


def convert_container(container: Container, work: CopyConversion) -> ContainerReport | Wait:
    """Read a container once, from front to back, and publish its due clips as shards with one split each.

    If a task is repeated, it continues after the clips that the killed task has stored. If the source throttles, a Wait
    is returned, and the finished clips are in journals. Other reading errors are retried. After the last attempt, the
    clips so far are published, and the report contains the error. Raises SourceError if the source refuses access, and
    StoreError if the shards can't be stored.
    """
    reader = ContainerReader(container, work)
    pauses = backoff(work.conversion.fetch.backoff_s, MAX_BACKOFF_S)
    num_attempts = 0
    while num_attempts < work.conversion.fetch.max_attempts:
        turn = work.limiter.acquire()
        if isinstance(turn, Wait):
            if turn.is_cooldown and turn.seconds > SHORT_COOLDOWN_S:
                reader.store_pending()
                return turn
            time.sleep(turn.seconds)
            continue
        try:
            reader.read(turn)
            break
        except InputError as error:  # a retry would read the same bytes
            reader.report.error = str(error)
            break
        except READ_ERRORS as error:
            check_access(container.location, error)
            if throttling := throttling_of(error):
                work.limiter.report_throttled(turn, container.address, throttling.retry_after_s)
                continue
            reader.report.error = f"{container.address}: {describe(error)}"
            num_attempts += 1
            if num_attempts < work.conversion.fetch.max_attempts:
                time.sleep(next(pauses))
    reader.publish_all()
    if not reader.report.error:
        work.conversion.check_lease()
        write_listing(work.conversion.store, container, work.segments.search, reader.keys)
    return reader.report


def shards_of(container: Container, work: CopyConversion, split: str) -> Iterator[Shard]:
    """Yield an endless series of shards for a container's clips of one split. It does not depend on how tasks are
    scheduled."""
    for number in count():
        plan = [container.address, container.version, work.segments.digest, split, number]
        yield Shard(split, digest_of(plan))


def count_stored_parts(container: Container, work: CopyConversion) -> int:
    """Count the stored parts of a container's clips. A published shard counts as complete."""
    store, num_parts = work.conversion.store, 0
    with suppress(StoreError):  # the count is only used to detect progress
        for split in work.segments.segments["split"].unique().to_pylist():
            for shard in shards_of(container, work, split):
                if not store.exists(shard.sidecar):
                    num_parts += work.conversion.journal(shard).count_parts()
                    break
                num_parts += -(-work.clips_per_shard // CLIPS_PER_PART)
    return num_parts


class ContainerReader:
    """Reads one container, and collects the clips that are due by split."""

    def __init__(self, container: Container, work: CopyConversion):
        self.container, self.work = container, work
        self.report = ContainerReport(container)
        self.groups: dict[str, Group] = {}
        self.shards: dict[str, Iterator[Shard]] = {}
        self.keys: list[str] = []
        """Keys of all segments that the container contains."""
        self.done: set[str] = set()
        """Keys of the clips that this run has already stored."""

    def read(self, permit: Permit) -> None:
        """Convert all due members that have not been stored yet. Reports a success to the limiter as soon as the source
        responds."""
        self.report.error, self.report.matches, self.keys = "", Matches(), []
        fetch = self.work.conversion.fetch
        with self.work.conversion.store.scratch() as scratch:
            for number, member in enumerate(read_members(self.container, scratch, fetch.max_media_bytes)):
                if number == 0:
                    self.work.limiter.report_success(permit)
                self._convert(member)

    def _convert(self, member: Member) -> None:
        segments = self.work.segments
        row = segments.find(member.stem)
        segment = None if row is None else segments.segment(row)
        self.report.matches.add(member.name, is_match=segment is not None)
        if row is None or segment is None:
            return
        self.keys.append(segment.key)
        if not segments.is_due[row]:
            return
        self.report.rows.add(row)
        group = self._group(segment.split)
        if segment.key in self.done:
            return
        self.done.add(segment.key)
        content, source = member.content, f"{self.container.location}/{member.name}"
        media = Media(content, source, offset_ms=segment.start_ms) if isinstance(content, bytes) else content
        group.add(convert_clip(segment, media, int(segments.attempts[row]) + 1, self.work.conversion.keep_audio))
        if len(group.segments) == self.work.clips_per_shard:
            self._publish(segment.split)

    def _group(self, split: str) -> Group:
        """Return the unfinished group of a split. Groups that a killed task has finished are skipped."""
        while split not in self.groups:
            if split not in self.shards:
                self.shards[split] = shards_of(self.container, self.work, split)
            shard, store = next(self.shards[split]), self.work.conversion.store
            if finished := report_of_existing(store, shard):
                self.report.shards.append(finished)
                self.done.update(read_sidecar(store, shard.sidecar, ["key"])["key"].to_pylist())
                continue
            journal = self.work.conversion.journal(shard)
            group = Group(journal, [result.segment for result in journal.read()])
            self.done.update(segment.key for segment in group.segments)
            self.groups[split] = group
        return self.groups[split]

    def store_pending(self) -> None:
        """Add the pending clips to the journals, where a repeated task finds them."""
        for group in self.groups.values():
            group.flush()

    def publish_all(self) -> None:
        """Publish the last shard of each split, which may be smaller than the others."""
        for split in list(self.groups):
            self._publish(split)

    def _publish(self, split: str) -> None:
        group = self.groups.pop(split)
        group.flush()
        if not group.segments:
            return
        plan = ShardPlan(group.journal.shard, tuple(group.segments), (0,) * len(group.segments))
        shard = write_shard(plan, self.work.conversion, group.journal.read())
        assert isinstance(shard, ShardReport), "nothing is fetched, so nothing has to wait"
        self.report.shards.append(shard)
        group.journal.clear()
