"""Get AudioSet and keep it up to date.

python jobs/preprocess.py run --media youtube --root /data/audioset
python jobs/preprocess.py plan|status|verify --root /data/audioset …
python jobs/preprocess.py snapshots list|diff|prune --root /data/audioset …
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from jobs.launch.cli import resolve_root, run_job
from jobs.launch.preprocessing import preprocess_tracked, with_miniature_media
from jobs.launch.snapshots import (
    DiffSnapshots,
    ListSnapshots,
    PruneSnapshots,
    print_difference,
    print_snapshots,
    remove_snapshots,
)
from pipeline.cluster import ray_session, run_tasks
from pipeline.config import PreprocessConfig
from pipeline.errors import CorruptError, NoClipsError
from pipeline.estimate import CostConfig, Estimate
from pipeline.labels import read_labels
from pipeline.preprocess import LABELS_FILE, PreprocessReport, clips_per_hour, load_metadata, preprocess
from pipeline.progress import show_progress
from pipeline.records import FailureCategory
from pipeline.segments import join_tables, read_segment_table
from pipeline.shards.format import digest_of, shard_settings
from pipeline.shards.ledger import plan_shards, read_sidecar_table
from pipeline.shards.verify import orphans, remove_shard, verify_shard
from pipeline.snapshots.snapshot import Snapshot
from pipeline.snapshots.status import count_classes, count_reasons, due, segment_statuses
from pipeline.sources import open_source
from pipeline.store.lock import hold_lease
from pipeline.store.storage import Store

Data = Annotated[PreprocessConfig, tyro.conf.arg(name=""), tyro.conf.EnumChoicesFromValues]
NUM_NAMED = 20


@dataclass(frozen=True)
class Run:
    """Fetch and convert what is missing or failed in a way that may pass, and publish a snapshot if something changed.

    Exit codes: 0 done; 75 another run holds the store, try later; 1 an error, whose message says what to do.
    """

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    track: bool = True
    """Log the run to MLflow."""


@dataclass(frozen=True)
class Plan:
    """Say what a run would visit and what that costs. Touches nothing."""

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    costs: CostConfig = field(default_factory=CostConfig)


@dataclass(frozen=True)
class Status:
    """Say how far the store is, per split, reason and class. Touches nothing."""

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    num_classes: int = 20
    """Classes to show, those with the least yield first."""


@dataclass(frozen=True)
class Verify:
    """Reread all shards and compare them with their sidecars."""

    root: str = "data/audioset"
    """Folder or s3:// address of the store."""
    data: Data = field(default_factory=PreprocessConfig)
    repair: bool = False
    """Remove the shards that are wrong and fetch their clips again."""


def run(command: Run) -> None:
    store = Store(resolve_root(command.root))
    with with_miniature_media(command.data, store) as data:
        if command.track:
            snapshot, visit = preprocess_tracked(data, store, f"preprocess-{time.strftime('%Y%m%d-%H%M%S')}")
        else:
            snapshot, visit = preprocess(data, store)
    print_summary(snapshot, visit)


def print_summary(snapshot: Snapshot, visit: PreprocessReport) -> None:
    if not visit.num_planned:
        print(f"nothing was due; the snapshot is {snapshot.snapshot_id}")
        return
    failed = ", ".join(f"{count} {reason}" for reason, count in visit.failures.most_common())
    counts = f"{visit.num_planned} planned, {visit.num_written} written, {visit.failures.total()} failed"
    print(f"{counts} ({failed})" if failed else counts)
    left = visit.num_planned - visit.num_decided
    if left:
        print(f"{left} not decided; a later run goes on with them")
    print(f"{visit.seconds:.1f} s; snapshot {snapshot.snapshot_id}")


def plan(command: Plan) -> None:
    store, data = Store(resolve_root(command.root)), command.data
    with with_miniature_media(data, store) as data:
        if data.media:
            open_source(data)  # says what is wrong with it
        _, segments = load_metadata(data)
    fingerprint = digest_of(shard_settings(data.keep_audio))
    visits = plan_shards(segments, read_sidecar_table(store, fingerprint), data.clips_per_shard, data.retry)
    print(f"{len(segments)} segments, {visits.num_segments} to be visited in {len(visits)} shards")
    per_hour = clips_per_hour(data)
    estimate = Estimate(visits.num_segments, per_hour, data.clips_per_shard, data.keep_audio, command.costs)
    print("\n".join(estimate.lines()))


def status(command: Status) -> None:
    store, data = Store(resolve_root(command.root)), command.data
    names = [f"metadata/{split}_segments.csv" for split in data.splits]
    if not all(store.exists(name) for name in names):
        raise NoClipsError(
            f"expected {', '.join(names)} in {store.root}, found some missing; run first, or name --splits"
        )
    labels = read_labels(store.url(f"metadata/{LABELS_FILE}"))
    segments = join_tables([read_segment_table(store.url(name)).slice(0, data.limit) for name in names])
    fates = segment_statuses(segments, read_sidecar_table(store, digest_of(shard_settings(data.keep_audio))))
    print(count_reasons(fates).to_string(index=False))
    if command.num_classes:
        print(f"\n{count_classes(fates, segments, labels).head(command.num_classes).to_string(index=False)}")
    num_due, num_more = due(fates, data.retry), due(fates, tuple(FailureCategory))
    more = f", with --retry {' '.join(FailureCategory)} {num_more}" if num_more > num_due else ""
    print(f"\na rerun would visit {num_due} of {len(fates)}{more}")


def verify(command: Verify) -> None:
    store = Store(resolve_root(command.root))
    shards = [name.removesuffix(".parquet") for name in store.list("shards", ".parquet")]
    wrong: dict[str, list[str]] = {}
    with ray_session(), show_progress("verify", len(shards), "shards") as progress:
        for shard, found in run_tasks(verify_shard, shards, store, max_in_flight=command.data.max_in_flight):
            if isinstance(found, Exception):
                raise found
            if found:
                wrong[shard] = found
            progress.advance(1, f"{len(wrong)} wrong")
    for message in [message for messages in wrong.values() for message in messages][:NUM_NAMED]:
        print(message)
    print(
        f"{len(shards) - len(wrong)} of {len(shards)} shards are sound, {len(orphans(store))} tars have no sidecar yet"
    )
    if wrong and not command.repair:
        raise CorruptError(f"{len(wrong)} shards of {store.root} are wrong; --repair fetches their clips again")
    if wrong:
        repair(sorted(wrong), store, command)


def repair(shards: list[str], store: Store, command: Verify) -> None:
    """Remove shards and make them anew; a snapshot that names them finds them again if the same bytes come."""
    with with_miniature_media(command.data, store) as data:
        with hold_lease(store):
            for shard in shards:
                remove_shard(shard, store)
        print_summary(*preprocess(data, store))


COMMANDS: dict[type, Callable[[Any], None]] = {
    Run: run,
    Plan: plan,
    Status: status,
    Verify: verify,
    ListSnapshots: print_snapshots,
    DiffSnapshots: print_difference,
    PruneSnapshots: remove_snapshots,
}
NAMES = {
    "run": Run,
    "plan": Plan,
    "status": Status,
    "verify": Verify,
    "snapshots list": ListSnapshots,
    "snapshots diff": DiffSnapshots,
    "snapshots prune": PruneSnapshots,
}


def main(argv: list[str]) -> int:
    if argv[:1] == ["snapshots"]:
        argv = [" ".join(argv[:2]), *argv[2:]]
    return run_job(lambda command: COMMANDS[type(command)](command), NAMES, default_preset="run", argv=argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
