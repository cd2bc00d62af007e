"""From AudioSet's CSV files to a snapshot: plan, fetch and convert on Ray, freeze."""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import fsspec

from pipeline.cluster import run_tasks
from pipeline.config import PreprocessConfig
from pipeline.convert import Conversion, convert_shard
from pipeline.errors import InputError, StoreError
from pipeline.labels import Labels, read_labels
from pipeline.ledger import BOOK_COLUMNS, plan_shards, read_ledger
from pipeline.progress import show_progress
from pipeline.records import Reason, Segment, ShardPlan, ShardReport
from pipeline.segments import read_segments
from pipeline.snapshot import Snapshot, build_snapshot
from pipeline.sources import open_source
from pipeline.storage import Store

log = logging.getLogger(__name__)
LABELS_FILE = "class_labels_indices.csv"


@dataclass
class Visit:
    """What one run of the preprocessing did."""

    num_planned: int = 0
    num_written: int = 0
    num_bytes: int = 0
    failures: Counter[Reason] = field(default_factory=Counter)
    errors: dict[str, Exception] = field(default_factory=dict)
    """Shards that could not be made at all."""
    seconds: float = 0.0

    def add(self, report: ShardReport) -> None:
        self.num_written += report.num_written
        self.num_bytes += report.num_bytes
        self.failures.update(report.failures)


def preprocess(config: PreprocessConfig, store: Store) -> tuple[Snapshot, Visit]:
    """Visit what is missing or failed in a retryable way, and freeze all that is there into a snapshot.

    Needs a running Ray. Raises InputError for bad tables, StoreError if shards can't be written.
    """
    store.check_writable()
    labels, segments = read_metadata(config)
    keep_metadata(config, store)
    conversion = Conversion(store, open_source(config), config.fetch, config.keep_audio)
    books = read_ledger(store, conversion.fingerprint, BOOK_COLUMNS)
    plans = plan_shards(segments, books, config.clips_per_shard)
    num_due = sum(len(plan.segments) for plan in plans)
    log.info("%d segments, %d to be visited in %d shards", len(segments), num_due, len(plans))
    visit = convert_all(plans, conversion, config.max_in_flight)
    return build_snapshot(store, labels, config.keep_audio), visit


def read_metadata(config: PreprocessConfig) -> tuple[Labels, list[Segment]]:
    """Read labels and the segments of all splits; refuse labels of segments that are no class."""
    folder = config.metadata.rstrip("/")
    labels = read_labels(f"{folder}/{LABELS_FILE}")
    segments: list[Segment] = []
    for split in config.splits:
        segments += read_segments(f"{folder}/{split}_segments.csv", split)[: config.limit]
    _check_labels(segments, labels, folder)
    return labels, segments


def _check_labels(segments: Iterable[Segment], labels: Labels, folder: str) -> None:
    unknown = {mid for segment in segments for mid in segment.labels} - labels.index_of.keys()
    if unknown:
        raise InputError(
            f"{folder}: {len(unknown)} labels of the segments are not among the {len(labels)} classes of"
            f" {LABELS_FILE}: {', '.join(sorted(unknown)[:10])}. The files don't belong together"
        )


def keep_metadata(config: PreprocessConfig, store: Store) -> None:
    """Copy the tables that a build is made from into the store."""
    for name in (LABELS_FILE, *(f"{split}_segments.csv" for split in config.splits)):
        with fsspec.open(f"{config.metadata.rstrip('/')}/{name}", "rb") as file:
            store.write_bytes(f"metadata/{PurePosixPath(name).name}", file.read())


def convert_all(plans: list[ShardPlan], conversion: Conversion, max_in_flight: int) -> Visit:
    """Convert shards as Ray tasks. A shard that can't be made is left for the next run; raise if none could."""
    visit = Visit(num_planned=sum(len(plan.segments) for plan in plans))
    started = time.monotonic()
    with show_progress("fetch and convert", visit.num_planned, "clips") as progress:
        for plan, outcome in run_tasks(convert_shard, plans, conversion, max_in_flight=max_in_flight):
            if isinstance(outcome, Exception):
                visit.errors[plan.shard_id] = outcome
                log.error("shard %s was not made: %s", plan.shard_id, outcome)
            else:
                visit.add(outcome)
            progress.advance(len(plan.segments), f"{visit.failures.total()} failed")
    visit.seconds = time.monotonic() - started
    if plans and len(visit.errors) == len(plans):
        first = next(iter(visit.errors.values()))
        raise StoreError(f"none of {len(plans)} shards could be made; the first one's error: {first}") from first
    return visit
