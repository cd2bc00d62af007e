"""Preprocess AudioSet: plan shards from its CSV files, fetch and convert clips on Ray, and publish a snapshot."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.cluster.limiter import start_rate_limiter
from pipeline.cluster.metrics import count_shard, count_shards, gauges
from pipeline.cluster.session import ray_session
from pipeline.cluster.tasks import run_tasks
from pipeline.config import PreprocessConfig
from pipeline.convert import Conversion, convert_shard, recover_partial_shard
from pipeline.copies.containers import Copy
from pipeline.copies.convert import CopyConversion
from pipeline.copies.run import convert_copy
from pipeline.copies.segment_index import index_due
from pipeline.copies.sources import LastSource, digest_of_sources, open_sources
from pipeline.errors import (
    AudioTaggingError,
    ConfigError,
    LeaseError,
    NoClipsError,
    SourceError,
    StoreError,
    WorkerError,
)
from pipeline.metadata import load_metadata
from pipeline.progress import Progress, show_progress
from pipeline.records import Reason, ShardPlan, ShardReport
from pipeline.shards.format import shard_fingerprint
from pipeline.shards.journal import Journal, partial_shards
from pipeline.shards.ledger import PreprocessPlan, plan_shards, read_sidecar_table
from pipeline.shards.orphans import remove_orphaned_files
from pipeline.snapshots.build import build_snapshot, is_current
from pipeline.snapshots.history import Changes, count_changes
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.sources import YOUTUBE, Source, read_proxies
from pipeline.store.lock import Holder, LeaseGuard, hold_lease
from pipeline.store.storage import Store

log = logging.getLogger(__name__)
YOUTUBE_CLIPS_PER_HOUR = 300
MAX_REFUSED_SHARDS = 3
"""The run ends once this many shards have failed with StoreErrors despite retries."""


@dataclass
class PreprocessReport:
    """Counts and errors of a preprocessing run."""

    num_planned: int = 0
    num_written: int = 0
    num_bytes: int = 0
    failures: Counter[Reason] = field(default_factory=Counter)
    errors: dict[str, Exception] = field(default_factory=dict)
    """The error of each failed shard, by shard id."""
    num_throttled: int = 0
    """Number of throttled requests."""
    is_complete: bool = True
    """False if the run stopped because all addresses were throttled."""
    seconds: float = 0.0
    changes: Changes = field(default_factory=Changes)
    """Differences from the previous snapshot."""

    def add(self, report: ShardReport) -> None:
        self.num_written += report.num_written
        self.num_bytes += report.num_bytes
        self.failures.update(report.failures)
        count_shard(report)

    @property
    def num_decided(self) -> int:
        return self.num_written + self.failures.total()


def preprocess(config: PreprocessConfig, store: Store) -> tuple[Snapshot, PreprocessReport]:
    """Fetch and convert all segments that are new or due for a retry, then build a snapshot.

    Starts Ray only if segments are due. Raises InputError if a table is invalid, LeaseError if another run holds the
    store, and StoreError if shards can't be written.
    """
    with hold_lease(store) as lease:
        remove_orphaned_files(store)
        metadata = load_metadata(config, store, lease.check)
        report = PreprocessReport()
        started = time.monotonic()
        convert_due(metadata.segments_of(config.splits, config.limit), config, store, report, lease)
        report.seconds = time.monotonic() - started
        before = None
        with suppress(NoClipsError, StoreError):  # a missing or damaged snapshot doesn't prevent a new one
            before = load_snapshot(store)
        if before and is_current(before, metadata, config.keep_audio):
            return before, report
        snapshot = build_snapshot(store, metadata, config.keep_audio, lease.check)
        if before and before.snapshot_id != snapshot.snapshot_id:
            report.changes = count_changes(before, snapshot)
        return snapshot, report


def convert_due(
    segments: pa.Table, config: PreprocessConfig, store: Store, report: PreprocessReport, lease: Holder
) -> None:
    """Recover the clips that earlier runs left in journals, then convert the segments that are due."""
    fingerprint = shard_fingerprint(config.keep_audio)
    unfinished = partial_shards(store, fingerprint)
    if not unfinished and not len(plan_due(segments, config, store)):
        return
    sources = open_sources(config)
    digest = digest_of_sources(config.media, sources)
    with ray_session():
        conversion = open_conversion(config, store, sources, digest, lease.guard)
        if unfinished:
            # Recover these clips before planning, so that they are not fetched again.
            recover_partial_shards(unfinished, conversion, config.max_in_flight, report)
            report.num_planned = report.num_decided
        for source in sources:
            if isinstance(source, Copy):
                plan = plan_due(segments, config, store, digest)
                convert_due_of_copy(source, plan, conversion, config, report, lease)
        plan = plan_due(segments, config, store, digest)
        log.info("%d segments, %d due in %d shards", len(segments), plan.num_segments, len(plan))
        report.num_planned += plan.num_segments
        gauges.set("clips_planned", report.num_planned)
        convert_all(plan, conversion, config, report, lease)
        if not report.is_complete:
            recover_partial_shards(partial_shards(store, fingerprint), conversion, config.max_in_flight, report)


def plan_due(segments: pa.Table, config: PreprocessConfig, store: Store, sources_digest: str = "") -> PreprocessPlan:
    """Plan the segments that are due. Without a digest of the sources, all clips that earlier sources lacked are
    due."""
    table = read_sidecar_table(store, shard_fingerprint(config.keep_audio))
    max_attempts = config.fetch.max_total_attempts
    return plan_shards(segments, table, config.clips_per_shard, config.retry, max_attempts, sources_digest)


def convert_due_of_copy(
    copy: Copy,
    plan: PreprocessPlan,
    conversion: Conversion,
    config: PreprocessConfig,
    report: PreprocessReport,
    lease: Holder,
) -> None:
    """Convert the planned segments that a copy contains, one container after another."""

    def add_report(shard: ShardReport) -> None:
        report.num_planned += shard.num_planned
        report.add(shard)

    # Don't use the limiter of the last source: its hourly limit counts clips and does not apply to whole containers.
    limiter = start_rate_limiter(config.rate_limit, clips_per_hour=0, proxies=())
    work = CopyConversion(conversion, index_due(plan, config.id_pattern), config.clips_per_shard, limiter)
    convert_copy(copy, work, config, add_report, check_lease=lease.check)


def open_conversion(
    config: PreprocessConfig,
    store: Store,
    sources: Sequence[Copy | Source],
    sources_digest: str,
    lease: LeaseGuard | None = None,
) -> Conversion:
    """Start the rate limiter of the last source, and collect everything that tasks need. Ray must be running."""
    limiter = start_rate_limiter(config.rate_limit, clips_per_hour(config), read_proxies(config.fetch))
    last = None if isinstance(sources[-1], Copy) else sources[-1]
    return Conversion(store, LastSource(last, sources_digest), config.fetch, config.keep_audio, limiter, lease)


def clips_per_hour(config: PreprocessConfig) -> int:
    """Return the hourly limit of clips per address. 0 means that there is no limit."""
    default = YOUTUBE_CLIPS_PER_HOUR if YOUTUBE in config.media else 0
    return default if config.rate_limit.clips_per_hour is None else config.rate_limit.clips_per_hour


def recover_partial_shards(
    journals: list[Journal], conversion: Conversion, max_in_flight: int, report: PreprocessReport
) -> None:
    """Publish the finished clips of incomplete shards as separate shards."""
    log.info("%d shards are incomplete; publishing their finished clips as separate shards", len(journals))
    for journal, outcome in run_tasks(recover_partial_shard, journals, conversion, max_in_flight=max_in_flight):
        if isinstance(outcome, LeaseError):
            raise outcome
        if isinstance(outcome, Exception):
            raise StoreError(f"can't recover {journal.folder}: {outcome}") from outcome
        if outcome:
            report.add(outcome)


def convert_all(
    plans: PreprocessPlan | Sequence[ShardPlan],
    conversion: Conversion,
    config: PreprocessConfig,
    report: PreprocessReport,
    lease: Holder | None,
) -> None:
    """Convert shards as Ray tasks. If a shard fails, its segments are due again in the next run.

    Raises StoreError if several shards can't be stored or every shard fails, WorkerError if workers die at every shard,
    SourceError if the source is unreachable for `--rate-limit.max-idle-s`, and LeaseError if another run takes over.
    """
    num_done = 0

    def should_stop(wait_s: float) -> bool:
        return conversion.limiter.status().idle_s + wait_s > config.rate_limit.max_idle_s

    def count_parts(plan: ShardPlan) -> int:
        journal = Journal(conversion.store, conversion.fingerprint, plan.shard)
        return journal.count_parts()

    with show_progress("fetch and convert", report.num_planned, "clips", start=report.num_decided) as progress:
        tasks = run_tasks(
            convert_shard,
            plans,
            conversion,
            max_in_flight=config.max_in_flight,
            should_stop=should_stop,
            progress_of=count_parts,
        )
        for plan, outcome in tasks:
            if lease:
                lease.check()
            if isinstance(outcome, ConfigError | LeaseError):  # every other shard would fail as well
                raise outcome
            num_done += 1
            _count(plan, outcome, report, progress)
            num_refused = sum(isinstance(error, StoreError) for error in report.errors.values())
            if num_refused == MAX_REFUSED_SHARDS or len(report.errors) == len(plans):
                raise _too_many_failures(report)
    limiter = conversion.limiter.status()
    report.num_throttled = limiter.num_throttled
    report.is_complete = num_done == len(plans)
    if report.is_complete:
        return
    so_far = f"{num_done} of {len(plans)} shards were finished, and finished clips are stored"
    if limiter.outage:
        raise SourceError(
            f"{' '.join(config.media)} did not answer for {limiter.idle_s:.0f} s. Last failure: {limiter.outage}."
            f" {so_far}; run the same command again to resume"
        )
    log.warning(
        "stopped: every address is throttled, and no clip arrived for %.0f s; %s. Run again later, at a lower rate, or"
        " from other addresses",
        limiter.idle_s,
        so_far,
    )


def _count(plan: ShardPlan, outcome: ShardReport | Exception, report: PreprocessReport, progress: Progress) -> None:
    if isinstance(outcome, Exception):
        if not isinstance(outcome, AudioTaggingError):
            log.error("shard %s failed: %s: %s", plan.shard.shard_id, type(outcome).__name__, outcome)
        report.errors[plan.shard.shard_id] = outcome
        count_shards("failed")
    else:
        report.add(outcome)
    progress.advance(len(plan.segments), f"{report.failures.total()} failed")


def _too_many_failures(report: PreprocessReport) -> AudioTaggingError:
    first = next(iter(report.errors.values()))
    error_type = WorkerError if isinstance(first, WorkerError) else StoreError
    return error_type(
        f"{len(report.errors)} shards failed, so the run ends; of {report.num_planned} clips, {report.num_written} were"
        f" written and {report.failures.total()} failed. Run the same command again to resume. The first error: {first}"
    )
