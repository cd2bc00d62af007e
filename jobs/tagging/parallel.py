"""Tag many recordings as Ray tasks. Results are stored per group, so an interrupted run resumes.

    output/
        settings.json                 all settings that determine the tags; new settings need a new output
        model.safetensors             the model, for every node
        tags/{group}.parquet          a row per tag, with the columns of `ast_model.tagging.tables`
        embeddings/{group}.parquet    a row per recording or window, if requested
        files/{group}.parquet         a row per recording: tagged, or failed with a reason; written last, as the marker
                                      of a finished group

Like shards, groups are named by a digest of their plan, so tasks can be repeated.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
from ray.exceptions import RayError

from ast_model.evaluation.calibration import Calibration
from ast_model.export import export_safetensors
from ast_model.inference import Tagger
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.streams import Tagged, Untagged, tag_recordings
from jobs.tagging.settings import PredictConfig
from pipeline.cluster.session import count_processors, ray_session
from pipeline.cluster.tasks import TASKS_PER_PROCESSOR, run_tasks
from pipeline.config import FetchConfig
from pipeline.errors import CorruptError, InputError, MismatchError, WorkerError, describe
from pipeline.progress import format_duration, show_progress
from pipeline.records import Failure, FailureCategory, Reason
from pipeline.shards.format import FAILED, digest_of
from pipeline.sources.listing import MediaFile
from pipeline.store.lock import LeaseGuard, hold_lease
from pipeline.store.storage import Store
from pipeline.store.tables import parquet_bytes, read_parquet

log = logging.getLogger(__name__)

TAGS, EMBEDDINGS, FILES = "tags", "embeddings", "files"
MODEL, SETTINGS = "model.safetensors", "settings.json"
TAGGED = "tagged"
RETRIED = (FailureCategory.TRANSIENT, FailureCategory.THROTTLED)
NUM_READERS = 16
TAGS_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "label": pa.string(),
        "score": pa.float64(),
    }
)
"""Schema of the tables of tags. Without it, a group without tags would have untyped columns."""
FILES_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "status": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "attempts": pa.int64(),
        "length_s": pa.float64(),
    }
)


@dataclass(frozen=True)
class TagJob:
    """Small, picklable settings and model address, with which a worker can tag any group."""

    store: Store
    config: PredictConfig
    calibration: Calibration | None
    lease: LeaseGuard | None = None
    """The run's lease of the output. Tasks check it before they write."""


@dataclass(frozen=True)
class Group:
    """Recordings of one task, with the number of earlier attempts at each."""

    recordings: tuple[MediaFile, ...]
    attempts: tuple[int, ...]

    @property
    def group_id(self) -> str:
        return digest_of([[each.name, count] for each, count in zip(self.recordings, self.attempts, strict=True)])


def tag_in_groups(recordings: Sequence[MediaFile], config: PredictConfig) -> None:
    """Tag new recordings and transient failures. Starts or joins Ray only if there are any.

    Raises LeaseError if another run writes to the output, MismatchError for tags with different settings.
    """
    store = Store(config.output.rstrip("/"))
    recordings = list({each.name: each for each in recordings}.values())
    with hold_lease(store) as lease:
        store.remove_orphaned_files()
        job = replace(open_job(store, config), lease=lease.guard)
        remove_unfinished(store)
        ledger = read_ledger(store)
        groups = plan_groups(recordings, ledger, config.files_per_task)
        num_due = sum(len(group.recordings) for group in groups)
        if groups:
            log.info("%d recordings, %d to tag in %d groups", len(recordings), num_due, len(groups))
            with ray_session(), show_progress("tag", len(recordings), "files", len(recordings) - num_due) as progress:
                num_failed = 0
                for group, failures in run_groups(groups, job):
                    lease.check()
                    num_failed += failures.total()
                    progress.advance(len(group.recordings), f"{num_failed} failed" if num_failed else "")
            ledger = read_ledger(store)
        _report(recordings, ledger, store)


def open_job(store: Store, config: PredictConfig) -> TagJob:
    """Copy the model to the output for all tasks. Raises MismatchError for tags with different settings."""
    tagger = Tagger.load(config.checkpoint, config.labels or None, "cpu", config.calibrated)
    calibration = tagger.scorer.calibration
    follow_from: dict[str, Any] = {
        "checkpoint": _digest_of_model(tagger),
        "calibrated": digest_of(calibration.to_json()) if calibration else "",
        "embeddings": config.embeddings,
        **_describe_options(config),
    }
    if store.exists(SETTINGS):
        # Older outputs lack newer options and were tagged with their defaults.
        found = _describe_options(TaggingOptions()) | store.read_json(SETTINGS)
        differ = [f"--{name.replace('_', '-')}" for name, value in follow_from.items() if found.get(name) != value]
        if differ:
            raise MismatchError(
                f"{store.root} has tags with different settings ({', '.join(differ)}); use the same settings, or a new"
                " --output"
            )
    else:
        with store.scratch() as folder:
            export_safetensors(tagger.model, folder / MODEL, tagger.metadata)
            store.publish(folder / MODEL, MODEL)
        store.write_json(SETTINGS, follow_from)
    return TagJob(store, config, calibration)


def _describe_options(options: TaggingOptions) -> dict[str, Any]:
    """Return the fields of `TaggingOptions` as JSON values."""
    values = {each.name: getattr(options, each.name) for each in fields(TaggingOptions)}
    return values | {"classes": list(options.classes)}


def _digest_of_model(tagger: Tagger) -> str:
    """Digest weights and metadata instead of the file, because the order of a safetensors header is not fixed."""
    digest = hashlib.sha256(repr((tagger.model.config, tagger.metadata)).encode())
    for name, value in sorted(tagger.model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def plan_groups(recordings: Sequence[MediaFile], ledger: pd.DataFrame, files_per_task: int) -> list[Group]:
    """Group new recordings in their order, then transient failures."""
    attempts = dict(zip(ledger["file"], ledger["attempts"], strict=True))
    is_retryable = ledger["reason"].map(lambda reason: bool(reason) and Reason(reason).category in RETRIED)
    is_due_again = is_retryable.astype(bool) & (ledger["attempts"] < FetchConfig.max_total_attempts)
    again = set(ledger["file"][is_due_again])
    groups = []
    for due in (
        [each for each in recordings if each.name not in attempts],
        [each for each in recordings if each.name in again],
    ):
        for start in range(0, len(due), files_per_task):
            some = tuple(due[start : start + files_per_task])
            groups.append(Group(some, tuple(int(attempts.get(each.name, 0)) for each in some)))
    return groups


def run_groups(groups: Sequence[Group], job: TagJob) -> Iterator[tuple[Group, Counter[Reason]]]:
    """Yield finished groups and their failures. Raises errors that would fail all groups."""
    device = job.config.device
    use_gpu = device.startswith("cuda") or (not device and ray.cluster_resources().get("GPU", 0) > 0)
    in_flight, num_gpus = TASKS_PER_PROCESSOR * count_processors(use_gpu), int(use_gpu)
    suspects: list[Group] = []
    for group, result in run_tasks(tag_group, groups, job, max_in_flight=in_flight, num_gpus=num_gpus):
        if isinstance(result, WorkerError | RayError):  # its process died repeatedly, perhaps at a single recording
            log.warning(
                "tagging the recordings of a group of %d one by one: %s", len(group.recordings), describe(result)
            )
            suspects += map(Group, ((each,) for each in group.recordings), ((count,) for count in group.attempts))
        elif isinstance(result, Exception):
            raise result
        else:
            yield group, result
    for group, result in run_tasks(tag_group, suspects, job, max_in_flight=in_flight, num_gpus=num_gpus):
        if isinstance(result, WorkerError | RayError):
            failure = Failure(Reason.UNKNOWN, f"the process that tags it died: {describe(result)}")
            yield group, write_group(group, [Untagged(group.recordings[0].name, failure)], job)
        elif isinstance(result, Exception):
            raise result
        else:
            yield group, result


def tag_group(group: Group, job: TagJob) -> Counter[Reason]:
    """Tag the recordings of a group and publish the results. Returns the failures. Idempotent."""
    tagger = _open_model(job.store.url(MODEL), job.config.device)
    tagger.scorer.calibration = job.calibration
    return write_group(group, list(tag_recordings(tagger.scorer, group.recordings, job.config)), job)


@lru_cache(maxsize=1)
def _open_model(address: str, device: str) -> Tagger:
    """Load the model once per process."""
    return Tagger.load(address, device=device or None)


def write_group(group: Group, results: Sequence[Tagged | Untagged], job: TagJob) -> Counter[Reason]:
    """Publish a group's results, the table of recordings last. Returns the failures."""
    if job.lease:
        job.lease.check()
    rows = []
    for result, attempts in zip(results, group.attempts, strict=True):
        row: dict[str, Any] = {
            "file": result.name,
            "reason": "",
            "detail": "",
            "attempts": attempts + 1,
            "length_s": 0.0,
        }
        if isinstance(result, Tagged):
            row |= {"status": TAGGED, "length_s": result.length_s}
        else:
            row |= {"status": FAILED, "reason": result.failure.reason.value, "detail": result.failure.detail}
        rows.append(row)
    tagged = [result for result in results if isinstance(result, Tagged)]
    if tagged:
        tags = pd.concat([result.tags for result in tagged], ignore_index=True)
        _write_table(job.store, TAGS, group, pa.Table.from_pandas(tags, TAGS_SCHEMA, preserve_index=False))
        if job.config.embeddings:
            _write_table(job.store, EMBEDDINGS, group, _embedding_table(tagged))
    _write_table(job.store, FILES, group, pa.Table.from_pylist(rows, FILES_SCHEMA))
    return Counter(Reason(row["reason"]) for row in rows if row["reason"])


def _embedding_table(tagged: Sequence[Tagged]) -> pa.Table:
    names = np.repeat([result.name for result in tagged], [len(result.starts_s) for result in tagged])
    embeddings_WD = np.concatenate([result.embeddings_WD for result in tagged])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(embeddings_WD.ravel()), embeddings_WD.shape[1])
    starts_s = np.concatenate([result.starts_s for result in tagged])
    return pa.table({"file": names.astype(object), "start_s": starts_s, "embedding": lists})


def _write_table(store: Store, folder: str, group: Group, table: pa.Table) -> None:
    store.write_bytes(_name(folder, group.group_id), parquet_bytes(table))


def _name(folder: str, group_id: str) -> str:
    return f"{folder}/{group_id}.parquet"


def remove_unfinished(store: Store) -> None:
    """Remove tags of unfinished groups, which will be tagged again."""
    done = {name.partition("/")[2] for name in store.list(FILES, ".parquet")}
    for folder in (TAGS, EMBEDDINGS):
        for name in store.list(folder, ".parquet"):
            if name.partition("/")[2] not in done:
                store.remove(name)


def read_ledger(store: Store) -> pd.DataFrame:
    """Read the last result of each attempted recording. Raises CorruptError."""

    def read(name: str) -> pa.Table:
        try:
            return read_parquet(store.read_bytes(name)).select(FILES_SCHEMA.names).cast(FILES_SCHEMA)
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise CorruptError(f"{store.url(name)} is damaged: {describe(error)}; remove it and run again") from error

    with ThreadPoolExecutor(NUM_READERS) as pool:
        tables = list(pool.map(read, store.list(FILES, ".parquet")))
    ledger = pa.concat_tables([FILES_SCHEMA.empty_table(), *tables]).to_pandas()
    return ledger.sort_values("attempts", kind="stable").drop_duplicates("file", keep="last")


def _report(recordings: Sequence[MediaFile], ledger: pd.DataFrame, store: Store) -> None:
    """Log the counts: planned = tagged + failed. Raises InputError if every recording failed."""
    rows = ledger[ledger["file"].isin({each.name for each in recordings})]
    failed = rows[rows["status"] == FAILED]
    num_tagged = len(rows) - len(failed)
    assert len(rows) == len(recordings), "each recording has a row once all groups are done"
    reasons = ", ".join(f"{count} {reason}" for reason, count in failed["reason"].value_counts().items())
    log.info(
        "%d recordings = %d tagged (%s of sound) + %d failed%s",
        *(len(recordings), num_tagged, format_duration(rows["length_s"].sum())),
        *(len(failed), f" ({reasons})" if reasons else ""),
    )
    log.info("tags: %s; status of each file: %s", store.url(TAGS), store.url(FILES))
    if not num_tagged:
        first = failed["detail"].iloc[0]
        raise InputError(f"none of {len(recordings)} recordings could be tagged. The first failure: {first}")
