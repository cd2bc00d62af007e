"""From AudioSet's CSV files to a snapshot: plan, fetch and convert on Ray, freeze."""

import filecmp
import logging
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pyarrow as pa

from pipeline.cluster import ray_session, run_tasks, start_rate_limiter
from pipeline.config import PreprocessConfig
from pipeline.convert import Conversion, convert_shard, recover_partial_shard
from pipeline.errors import AudioTaggingError, ConfigError, InputError, SourceError, StoreError
from pipeline.keys import has_repeats
from pipeline.labels import Labels, read_labels
from pipeline.progress import Progress, show_progress
from pipeline.records import Reason, ShardPlan, ShardReport
from pipeline.segments import join_tables, read_segment_table
from pipeline.shards.format import digest_of, shard_settings
from pipeline.shards.journal import Journal, partial_shards
from pipeline.shards.ledger import PreprocessPlan, plan_shards, read_sidecar_table
from pipeline.shards.leftovers import remove_orphaned_files
from pipeline.snapshots.snapshot import Snapshot, build_snapshot, load_current
from pipeline.sources import YOUTUBE, open_source, read_proxies
from pipeline.store.lock import Holder, hold_lease
from pipeline.store.storage import Store

log = logging.getLogger(__name__)
LABELS_FILE = "class_labels_indices.csv"
YOUTUBE_CLIPS_PER_HOUR = 300
MAX_REFUSED_SHARDS = 3
"""Shards that the store refuses, tried again each, before a run ends."""


@dataclass
class PreprocessReport:
    """What one run of the preprocessing did."""

    num_planned: int = 0
    num_written: int = 0
    num_bytes: int = 0
    failures: Counter[Reason] = field(default_factory=Counter)
    errors: dict[str, Exception] = field(default_factory=dict)
    """Shards that could not be made at all."""
    num_throttled: int = 0
    """Answers that an address asks too often."""
    is_complete: bool = True
    """False if the run stopped because nothing came any more."""
    seconds: float = 0.0

    def add(self, report: ShardReport) -> None:
        self.num_written += report.num_written
        self.num_bytes += report.num_bytes
        self.failures.update(report.failures)

    @property
    def num_decided(self) -> int:
        return self.num_written + self.failures.total()


def preprocess(config: PreprocessConfig, store: Store) -> tuple[Snapshot, PreprocessReport]:
    """Fetch and convert what is missing or failed in a retryable way, and freeze all that is there into a snapshot.

    Joins or starts Ray only if there is something to do. Raises InputError for bad tables, LeaseError if another
    run holds the store, StoreError if shards can't be written.
    """
    with hold_lease(store) as lease:
        remove_orphaned_files(store)
        labels, segments = load_metadata(config, keep_in=store)
        fingerprint = digest_of(shard_settings(config.keep_audio))
        visit = PreprocessReport()
        started = time.monotonic()
        left_behind = partial_shards(store, fingerprint)
        plan = plan_shards(
            segments,
            read_sidecar_table(store, fingerprint),
            config.clips_per_shard,
            config.retry,
            config.fetch.max_total_attempts,
        )
        if left_behind or len(plan):
            with ray_session():
                conversion = open_conversion(config, store)
                if left_behind:
                    recover_partial_shards(left_behind, conversion, config.max_in_flight, visit)
                    visit.num_planned = visit.num_decided
                    sidecar_table = read_sidecar_table(store, fingerprint)
                    plan = plan_shards(
                        segments, sidecar_table, config.clips_per_shard, config.retry, config.fetch.max_total_attempts
                    )
                log.info("%d segments, %d to be visited in %d shards", len(segments), plan.num_segments, len(plan))
                visit.num_planned += plan.num_segments
                convert_all(plan, conversion, config, visit, lease)
                if not visit.is_complete:
                    recover_partial_shards(partial_shards(store, fingerprint), conversion, config.max_in_flight, visit)
        visit.seconds = time.monotonic() - started
        return load_current(store, labels, config.keep_audio) or build_snapshot(store, labels, config.keep_audio), visit


def load_metadata(config: PreprocessConfig, keep_in: Store | None = None) -> tuple[Labels, pa.Table]:
    """Read labels and the segments of all splits, and keep their files in a store.

    Raises InputError if segments have labels that are no class.
    """
    address = config.metadata.rstrip("/")
    names = [LABELS_FILE, *(f"{split}_segments.csv" for split in config.splits)]
    with keep_in.scratch() if keep_in else tempfile.TemporaryDirectory() as folder:
        for name in names:
            _copy(f"{address}/{name}", Path(folder) / name)
        labels = read_labels(f"{folder}/{LABELS_FILE}")
        segments = join_tables(
            read_segment_table(f"{folder}/{name}", where=f"{address}/{name}").slice(0, config.limit)
            for name in names[1:]
        )
        _check_labels(segments, labels, address)
        _check_splits(segments, address)
        if keep_in:
            for name in names:
                _keep(Path(folder) / name, f"metadata/{name}", keep_in)
    return labels, segments


def _keep(file: Path, name: str, store: Store) -> None:
    """Publish a file unless the store has the same."""
    if store.exists(name):
        kept = file.with_suffix(".kept")
        store.fetch(name, kept)
        if filecmp.cmp(file, kept, shallow=False):
            return
    store.publish(file, name)


def _copy(address: str, file: Path) -> None:
    try:
        with fsspec.open(address, "rb") as source, file.open("wb") as copy:
            shutil.copyfileobj(source, copy)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise InputError(f"can't read {address}: {type(error).__name__}: {error}; look at `metadata`") from error


def _check_labels(segments: pa.Table, labels: Labels, address: str) -> None:
    used = segments["labels"].combine_chunks()
    unknown = {mid for text in used.dictionary.to_pylist() for mid in text.split(",")} - labels.index_of.keys()
    if unknown:
        raise InputError(
            f"{address}: {len(unknown)} labels of the segments are not among the {len(labels)} classes of"
            f" {LABELS_FILE}: {', '.join(sorted(unknown)[:10])}. The files don't belong together"
        )


def _check_splits(segments: pa.Table, address: str) -> None:
    if not has_repeats(segments["key"]):
        return
    counts = segments["key"].combine_chunks().value_counts()
    twice = counts.field("values").filter(pa.array(counts.field("counts").to_numpy() > 1))
    if len(twice):
        raise InputError(
            f"{address}: expected each segment in one split, found {len(twice)} in several, such as {twice[0]}: what"
            " is measured on would be learnt from; take them out of one of the files"
        )


def open_conversion(config: PreprocessConfig, store: Store) -> Conversion:
    """Open the source and start the rate limiter. Needs a running Ray."""
    limiter = start_rate_limiter(config.rate_limit, clips_per_hour(config), read_proxies(config.fetch))
    return Conversion(store, open_source(config), config.fetch, config.keep_audio, limiter)


def clips_per_hour(config: PreprocessConfig) -> int:
    """Return what an address may ask for in an hour; 0 is no limit."""
    default = YOUTUBE_CLIPS_PER_HOUR if config.media == YOUTUBE else 0
    return default if config.rate_limit.clips_per_hour is None else config.rate_limit.clips_per_hour


def recover_partial_shards(
    journals: list[Journal], conversion: Conversion, max_in_flight: int, visit: PreprocessReport
) -> None:
    """Make shards of what was decided for shards that were not finished."""
    log.info("%d shards were left unfinished; what they have becomes shards", len(journals))
    for journal, outcome in run_tasks(recover_partial_shard, journals, conversion, max_in_flight=max_in_flight):
        if isinstance(outcome, Exception):
            raise StoreError(f"can't finish {journal.folder}: {outcome}") from outcome
        if outcome:
            visit.add(outcome)


def convert_all(
    plans: PreprocessPlan | Sequence[ShardPlan],
    conversion: Conversion,
    config: PreprocessConfig,
    visit: PreprocessReport,
    lease: Holder | None,
) -> None:
    """Convert shards as Ray tasks. A shard that can't be made is left for the next run.

    Raises StoreError once the store refused several, or none could be made, SourceError if the source didn't answer for
    `--rate-limit.max-idle-s`, LeaseError if another run took over.
    """
    num_done = 0

    def should_stop(wait_s: float) -> bool:
        return conversion.limiter.status().idle_s + wait_s > config.rate_limit.max_idle_s

    with show_progress("fetch and convert", visit.num_planned, "clips", start=visit.num_decided) as progress:
        tasks = run_tasks(convert_shard, plans, conversion, max_in_flight=config.max_in_flight, should_stop=should_stop)
        for shard, outcome in tasks:
            if lease:
                lease.check()
            if isinstance(outcome, ConfigError):  # no other shard would fare better
                raise outcome
            num_done += 1
            _count(shard, outcome, visit, progress)
            num_refused = sum(isinstance(error, StoreError) for error in visit.errors.values())
            if num_refused == MAX_REFUSED_SHARDS or len(visit.errors) == len(plans):
                raise _stopped(visit)
    limiter = conversion.limiter.status()
    visit.num_throttled = limiter.num_throttled
    visit.is_complete = num_done == len(plans)
    if visit.is_complete:
        return
    so_far = f"{num_done} of {len(plans)} shards were made, and what is decided is kept"
    if limiter.outage:
        raise SourceError(
            f"{config.media} did not answer for {limiter.idle_s:.0f} s, the last time with: {limiter.outage}. {so_far};"
            " once it answers the same command goes on from there"
        )
    log.warning(
        "stopped: every address was told that it asks too often, and no clip came for %.0f s; %s. Run again later, more"
        " slowly, or from other addresses",
        limiter.idle_s,
        so_far,
    )


def _count(shard: ShardPlan, outcome: ShardReport | Exception, visit: PreprocessReport, progress: Progress) -> None:
    if isinstance(outcome, Exception):
        if not isinstance(outcome, AudioTaggingError):
            log.error("shard %s was not made: %s: %s", shard.shard_id, type(outcome).__name__, outcome)
        visit.errors[shard.shard_id] = outcome
    else:
        visit.add(outcome)
    progress.advance(len(shard.segments), f"{visit.failures.total()} failed")


def _stopped(visit: PreprocessReport) -> StoreError:
    first = next(iter(visit.errors.values()))
    return StoreError(
        f"{len(visit.errors)} shards could not be made, so the run ends; {visit.num_written} clips of"
        f" {visit.num_planned} were written in it and {visit.failures.total()} failed. The same command goes on from"
        f" there. The first error: {first}"
    )
