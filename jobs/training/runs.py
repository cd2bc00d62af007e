"""Start, resume and end runs, with records in the store and in MLflow."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ast_model.config import ASTConfig, TrainConfig
from ast_model.distributed import World
from ast_model.tracking.publish import try_publish
from ast_model.tracking.run import TrackedRun, continue_run, start_run
from ast_model.training.checks import changed_settings, check_same_job, check_training
from ast_model.training.job import Launcher, TrainingJob
from ast_model.training.plan import TrainingPlan
from ast_model.training.rank_check import check_exchange
from ast_model.training.step_metrics import Metrics
from ast_model.training.trainer import Trainer
from jobs.training.provenance import command, provenance
from jobs.training.teacher_scores import check_teachers, open_teachers
from jobs.training.titles import RunSettings, describe_run, is_head_only, run_params, run_title
from pipeline.errors import ConfigError, CorruptError, MismatchError, NoClipsError
from pipeline.quality.selection import count_leaks
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.layout import RUN_RECORD, RUNS, RunFiles, name_in
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

TrackedJob = TrainingJob[TrackedRun]


def begin_run(config: RunSettings, snapshot: Snapshot, run: str, parent: TrackedRun | None = None) -> TrackedJob:
    """Start a run, with records in the store and in MLflow. Its model has the snapshot's classes.

    Raises before recording anything if the store is not writable or training can't start with this data.
    """
    model = dataclasses.replace(config.model, num_classes=len(snapshot.labels))
    store = snapshot.store
    # Check first: runs that could not start would clutter MLflow.
    store.check_writable()
    plan = _check_plan(config.train, model, snapshot)
    _warn_of_leaks(config.train, snapshot)
    title = run_title(config, model, snapshot, run)
    tags = {"preset": config.preset, "run": run, "stage": "train", **provenance()}
    tracker = start_run(store, title, tags, parent=parent)
    job = TrainingJob(config.train, model, snapshot, run, tracker, title)
    # A resume relies on this record. Write it before the parameters, which MLflow may reject.
    store.write_json(RunFiles(run).record, job.describe())
    tracker.log_params({**run_params(config, model), "eval.coverage": str(plan.eval_coverage)})
    tracker.log_data(snapshot, "training")
    tracker.describe(describe_run(config, model, snapshot, run))
    log.info("run %s, in MLflow %r", run, title)
    if not is_head_only(config.preset):
        log.info("to resume it after an interruption: %s --resume %s", command(), run)
    return job


def _check_plan(config: TrainConfig, model: ASTConfig, snapshot: Snapshot) -> TrainingPlan:
    plan = TrainingPlan(snapshot, config)
    check_training(plan, model)
    check_teachers(plan)
    return plan


def _warn_of_leaks(config: TrainConfig, snapshot: Snapshot) -> None:
    if num_leaks := count_leaks(snapshot, config.train_splits, config.eval_split):
        log.warning(
            "%d of %d evaluation clips (%s) are also training clips, or near-identical to one, so the metrics will be"
            " too high. To exclude such training clips, add --data.exclude duplicate_of_eval",
            *(num_leaks, len(snapshot.rows_of((config.eval_split,))), config.eval_split),
        )


def resume_run(run: str, store: Store, config: RunSettings, snapshot_id: str = "") -> TrackedJob:
    """Resume a run on its own snapshot, as the same run in MLflow.

    snapshot_id: snapshot requested by the user, if any. Raises ConfigError if the run does not exist or is finished,
    MismatchError if the settings change the samples, the model or the snapshot, and NoClipsError if the run's snapshot
    was removed.
    """
    if not run_exists(run, store):
        raise ConfigError(f"expected a run named {run} in {store.root}, found {_describe_runs(store)}")
    # The history is written last, so it marks a finished training.
    if store.exists(RunFiles(run).history):
        raise ConfigError(
            f"run {run} is finished: its epochs are in {store.url(RunFiles(run).history)}; start a new run"
        )
    record = _read_record(run, store)
    if snapshot_id and snapshot_id != record["snapshot"]:
        raise MismatchError(
            f"run {run} trains on snapshot {record['snapshot']}, found --snapshot {snapshot_id}; omit --snapshot,"
            " or start a new run"
        )
    # Load the run's own snapshot. Draws depend on its id, so the run could not continue on another snapshot.
    try:
        snapshot = load_snapshot(store, record["snapshot"])
    except NoClipsError as error:
        raise NoClipsError(
            f"run {run} trains on snapshot {record['snapshot']}, which is no longer in {store.root}; restore the"
            " snapshot, or start a new run"
        ) from error
    model = dataclasses.replace(config.model, num_classes=len(snapshot.labels))
    settings = {"snapshot": snapshot.snapshot_id, "model": model, "train": config.train}
    check_same_job(run, settings, record)
    _check_plan(config.train, model, snapshot)
    for change in changed_settings(settings, record).values():
        log.warning("run %s continues with a changed setting, %s", run, change)
    tracker = continue_run(store, record["tracking_run"])
    tracker.log_params(run_params(config, model))
    return TrainingJob(config.train, model, snapshot, run, tracker, str(record.get("title", "")))


def _describe_runs(store: Store) -> str:
    names = [name_in(RUNS, name) for name in store.list(RUNS, f"/{RUN_RECORD}")]
    return ", ".join(names[-10:]) or "none at all"


def run_exists(run: str, store: Store) -> bool:
    return store.exists(RunFiles(run).record)


def _read_record(run: str, store: Store) -> dict[str, Any]:
    record, fields = (
        store.read_json(RunFiles(run).record),
        {"snapshot": str, "tracking_run": str, "model": dict, "train": dict},
    )
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in fields.items()):
        raise CorruptError(
            f"{store.url(RunFiles(run).record)}: expected the record of a run with {', '.join(fields)}, found"
            f" {str(record)[:100]!r}; restore the file, or start a new run"
        )
    return record


@contextmanager
def end_run_on_exit(job: TrackedJob) -> Iterator[None]:
    """End a run with a status, and publish the results if it finished."""
    with job.tracker.end_on_exit():
        yield
        try_publish(job.tracker, job.snapshot, job.run)


def train_rank(job: TrackedJob, world: World, launcher: Launcher) -> list[Metrics]:
    """Train one rank of a run. Continues from the run's newest checkpoint, if any."""
    try:
        check_exchange(job, world)
        teachers = open_teachers(TrainingPlan(job.snapshot, job.config))
        history = Trainer(job, world, launcher, teachers).run()
    finally:
        # Close on every rank, or queued metrics would wait for the next job on this machine.
        job.tracker.close()
    if world.is_main:
        job.store.write_json(RunFiles(job.run).history, history)
    return history
