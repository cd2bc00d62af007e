"""The commands about a store's clips: run, plan, status, verify."""

import time

from jobs.config import PlanCommand, RunCommand, StatusCommand, VerifyCommand
from jobs.launch.cli import resolve_root
from jobs.launch.preprocessing import preprocess_tracked, with_miniature_media
from pipeline.cluster import ray_session, run_tasks
from pipeline.errors import CorruptError, NoClipsError, StoreError
from pipeline.estimate import Estimate
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

NUM_NAMED = 20


def run(command: RunCommand) -> None:
    store = Store(resolve_root(command.root))
    with with_miniature_media(command.data, store) as data:
        if command.track:
            snapshot, visit = preprocess_tracked(data, store, f"preprocess-{time.strftime('%Y%m%d-%H%M%S')}")
        else:
            snapshot, visit = preprocess(data, store)
    print_summary(snapshot, visit)
    if visit.errors:
        shard, error = next(iter(visit.errors.items()))
        raise StoreError(
            f"{len(visit.errors)} shards could not be made; a rerun tries them again. The first, {shard}: {error}"
        )


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


def plan(command: PlanCommand) -> None:
    store, data = Store(resolve_root(command.root)), command.data
    with with_miniature_media(data, store) as data:
        if data.media:
            open_source(data)  # says what is wrong with it
        _, segments = load_metadata(data)
    fingerprint = digest_of(shard_settings(data.keep_audio))
    visits = plan_shards(
        segments,
        read_sidecar_table(store, fingerprint),
        data.clips_per_shard,
        data.retry,
        data.fetch.max_total_attempts,
    )
    print(f"{len(segments)} segments, {visits.num_segments} to be visited in {len(visits)} shards")
    per_hour = clips_per_hour(data)
    estimate = Estimate(visits.num_segments, per_hour, data.clips_per_shard, data.keep_audio, command.costs)
    print("\n".join(estimate.lines()))


def status(command: StatusCommand) -> None:
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


def verify(command: VerifyCommand) -> None:
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


def repair(shards: list[str], store: Store, command: VerifyCommand) -> None:
    """Remove shards and make them anew; a snapshot that names them finds them again if the same bytes come."""
    with with_miniature_media(command.data, store) as data:
        with hold_lease(store):
            for shard in shards:
                remove_shard(shard, store)
        print_summary(*preprocess(data, store))
