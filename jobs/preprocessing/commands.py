"""The commands `run`, `plan`, `status`, `verify` and `measure`."""

import itertools
import time
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from jobs.command_line.cli import resolve_root
from jobs.command_line.notifications import notifying
from jobs.preprocessing.estimate import estimate_lines
from jobs.preprocessing.miniature_media import with_miniature_media
from jobs.preprocessing.settings import MeasureCommand, PlanCommand, RunCommand, StatusCommand, VerifyCommand
from jobs.preprocessing.tracked import check_all_made, preprocess_tracked, summarise
from pipeline.cluster.session import ray_session
from pipeline.cluster.tasks import run_tasks
from pipeline.copies.containers import Copy
from pipeline.copies.coverage import describe_coverage, estimate_coverage, find_due_containers
from pipeline.copies.run import check_heads
from pipeline.copies.segment_index import index_due
from pipeline.copies.sources import digest_of_sources, open_sources
from pipeline.errors import CorruptError, NoClipsError
from pipeline.measures.backfill import is_measured, measure_shard, shards_with_clips
from pipeline.metadata import load_metadata, read_stored_metadata, stored_splits
from pipeline.preprocess import PreprocessReport, clips_per_hour, plan_due, preprocess
from pipeline.progress import show_progress
from pipeline.records import FailureCategory
from pipeline.shards.format import shard_fingerprint
from pipeline.shards.ledger import find_retries, match_segments, read_sidecar_table
from pipeline.shards.orphans import orphaned_tars
from pipeline.shards.verify import remove_shard, verify_shard
from pipeline.snapshots.origins import count_origins
from pipeline.snapshots.snapshot import Snapshot
from pipeline.snapshots.status import count_classes, count_reasons, segment_statuses
from pipeline.sources import read_proxies
from pipeline.store.layout import METADATA, SHARDS, SIDECAR, Shard, segments_file
from pipeline.store.lock import hold_lease
from pipeline.store.storage import Store

MAX_MESSAGES = 20
"""Maximum number of errors that `verify` prints."""


def run(command: RunCommand) -> None:
    with notifying(command.notify, "preprocess") as summary:
        store = Store(resolve_root(command.root))
        with with_miniature_media(command.data, store) as data:
            if command.track:
                snapshot, report = preprocess_tracked(data, store, f"preprocess-{time.strftime('%Y%m%d-%H%M%S')}")
            else:
                snapshot, report = preprocess(data, store)
        summary |= summarise(snapshot, report)
        print_summary(snapshot, report)
        check_all_made(report)


def print_summary(snapshot: Snapshot, report: PreprocessReport) -> None:
    if report.num_planned:
        failed = ", ".join(f"{count} {reason}" for reason, count in report.failures.most_common())
        counts = f"{report.num_planned} planned, {report.num_written} written, {report.failures.total()} failed"
        print(f"{counts} ({failed})" if failed else counts)
        if left := report.num_planned - report.num_decided:
            print(f"{left} not attempted; a later run resumes with them")
        print(f"{report.seconds:.1f} s; snapshot {snapshot.snapshot_id}")
    else:
        print(f"nothing to fetch; the snapshot is {snapshot.snapshot_id}")
    if report.changes:
        print(f"changed since the previous snapshot: {report.changes}")


def plan(command: PlanCommand) -> None:
    store, data = Store(resolve_root(command.root)), command.data
    with with_miniature_media(data, store) as data:
        sources = open_sources(data) if data.media else []  # raises an error if a source is unusable
        segments = load_metadata(data).segments_of(data.splits, data.limit)
    due = plan_due(segments, data, store, digest_of_sources(data.media, sources) if sources else "")
    print(f"{len(segments)} segments, {due.num_segments} due in {len(due)} shards")
    num_single, num_bytes = due.num_segments, 0
    for copy in (source for source in sources if isinstance(source, Copy)):
        index = index_due(due, data.id_pattern)
        containers = find_due_containers(copy.containers, index, store)
        coverage = estimate_coverage(containers, index)
        check_heads(coverage, index)
        print("\n".join(f"copy     {line}" for line in describe_coverage(copy, containers, coverage, index)))
        num_single = max(0, num_single - coverage.num_due)
        num_bytes += sum(container.num_bytes for container in containers.containers)
    if sources and isinstance(sources[-1], Copy):
        print(f"missing  about {num_single} due clips are in none of the sources")
        num_single = 0
    num_addresses = max(1, len(read_proxies(data.fetch)))
    lines = estimate_lines(
        due.num_segments, num_single, num_bytes, clips_per_hour(data), num_addresses, data.keep_audio
    )
    print("\n".join(lines))


def status(command: StatusCommand) -> None:
    store, data = Store(resolve_root(command.root)), command.data
    if missing := [split for split in data.splits if split not in stored_splits(store)]:
        names = ", ".join(map(segments_file, missing))
        raise NoClipsError(
            f"expected {names} in {store.root}, found none; run `preprocess.py run` first, or set --splits"
        )
    metadata = read_stored_metadata(store, data.splits)
    segments = metadata.segments_of(data.splits, data.limit)
    sidecar_table = read_sidecar_table(store, shard_fingerprint(data.keep_audio))
    rows = match_segments(segments, sidecar_table)
    statuses = segment_statuses(segments, sidecar_table, rows)
    print(count_reasons(statuses).to_string(index=False))
    if command.num_classes:
        classes = count_classes(statuses, segments, metadata.labels)
        print(f"\n{classes.head(command.num_classes).to_string(index=False)}")

    def count_due(retry: Collection[FailureCategory]) -> int:
        is_due_again = find_retries(rows, sidecar_table, retry, data.fetch.max_total_attempts)
        return int(np.count_nonzero((rows < 0) | is_due_again))

    num_due, num_more = count_due(data.retry), count_due(tuple(FailureCategory))
    more = f", with --retry {' '.join(FailureCategory)} {num_more}" if num_more > num_due else ""
    print(f"\n{num_due} of {len(statuses)} segments are due in a rerun{more}")
    if origins := count_origins(store):
        num_written = sum(origins.values())
        print("\nwritten clips by source")
        for origin, count in origins.items():
            print(f"{count:>10,} {count / num_written:>6.1%}  {origin}")


def verify(command: VerifyCommand) -> None:
    store = Store(resolve_root(command.root))
    shards = [Shard.of(name) for name in store.list(SHARDS, SIDECAR)]
    damaged: dict[Shard, list[str]] = {}
    num_unmeasured = 0
    with ray_session(), show_progress("verify", len(shards), "shards") as progress:
        tasks = run_tasks(verify_with_measures, shards, store, max_in_flight=command.data.max_in_flight)
        for shard, outcome in tasks:
            if isinstance(outcome, Exception):
                raise outcome
            errors, has_measures = outcome
            if errors:
                damaged[shard] = errors
            num_unmeasured += not has_measures
            progress.advance(1, f"{len(damaged)} damaged")
    for message in list(itertools.chain(*damaged.values()))[:MAX_MESSAGES]:
        print(message)
    num_orphaned = len(orphaned_tars(store))
    print(f"{len(shards) - len(damaged)} of {len(shards)} shards are intact, {num_orphaned} tars have no sidecar yet")
    if num_unmeasured:
        print(f"{num_unmeasured} shards lack measures of some clips; `preprocess.py measure` adds them")
    if damaged and not command.repair:
        raise CorruptError(
            f"{len(damaged)} shards of {store.root} are damaged; add --repair to fetch their clips again"
        )
    if damaged:
        repair(sorted(damaged), store, command)


def verify_with_measures(shard: Shard, store: Store) -> tuple[list[str], bool]:
    """Return a shard's errors, and whether its clips are measured. A damaged shard counts as measured."""
    errors = verify_shard(shard, store)
    return errors, bool(errors) or is_measured(shard, store)


def measure(command: MeasureCommand) -> None:
    measure_missing(Store(resolve_root(command.root)), command.max_in_flight)


def measure_missing(store: Store, max_in_flight: int) -> None:
    """Measure clips without measures of the current version. Raises CorruptError if any shard is damaged."""
    shards, damaged = shards_with_clips(store), list[Exception]()
    num_clips = num_shards = 0
    with ray_session(), show_progress("measure", len(shards), "shards") as progress:
        for _, num_measured in run_tasks(measure_shard, shards, store, max_in_flight=max_in_flight):
            if isinstance(num_measured, CorruptError):  # continue with the intact shards
                damaged.append(num_measured)
            elif isinstance(num_measured, Exception):
                raise num_measured
            else:
                num_clips += num_measured
                num_shards += num_measured > 0
            progress.advance(1, f"{num_clips} clips measured")
    print(f"{num_clips} clips in {num_shards} of {len(shards)} shards measured; the other shards had measures")
    if damaged:
        raise CorruptError(
            f"{len(damaged)} shards of {store.root} can't be measured; `preprocess.py verify --repair` fetches their"
            f" clips again. The first: {damaged[0]}"
        )


def repair(shards: list[Shard], store: Store, command: VerifyCommand) -> None:
    """Remove shards and fetch their clips again, using the metadata in the store.

    Snapshots that refer to a shard stay valid if the source still delivers the same bytes.
    """
    with with_miniature_media(command.data, store) as data:
        if splits := tuple(stored_splits(store)):
            data = replace(data, metadata=store.url(METADATA), splits=splits)
        open_sources(data)  # raises an error for an unusable source before any shard is removed
        with hold_lease(store) as lease:
            for shard in shards:
                lease.check()
                remove_shard(shard, store)
        print_summary(*preprocess(data, store))
