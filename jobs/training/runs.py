"""Runs by name: begun once, resumed on purpose, ended with a status."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ast_model.config import ASTConfig, TrainConfig
from ast_model.distributed import World
from ast_model.tracking.publish import try_publish
from ast_model.tracking.run import TrackedRun, continue_run, start_run
from ast_model.training.checks import changed_settings, check_same_job, check_training
from ast_model.training.job import StopSignal, TrainingJob
from ast_model.training.plan import TrainingPlan
from ast_model.training.step_metrics import Metrics
from ast_model.training.trainer import Trainer
from jobs.training.provenance import provenance
from jobs.training.teacher_scores import check_teachers, open_teachers
from jobs.training.titles import RunSettings, describe_run, run_params, run_title
from pipeline.errors import ConfigError, MismatchError, NoClipsError
from pipeline.quality.selection import count_leaks
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

TrackedJob = TrainingJob[TrackedRun]


def begin_run(config: RunSettings, snapshot: Snapshot, run: str, parent: TrackedRun | None = None) -> TrackedJob:
    """Give a new run its record, in the store and in MLflow. Its model has the snapshot's classes.

    Raises, before anything is recorded, if the store can't be written or training cannot start with this data.
    """
    model = dataclasses.replace(config.model, num_classes=len(snapshot.labels))
    store = snapshot.store
    # Checked first: a run in MLflow that could not even begin is noise in every list.
    store.check_writable()
    _check_plan(config.train, model, snapshot)
    _warn_of_leaks(config.train, snapshot)
    title = run_title(config, model, snapshot, run)
    tags = {"preset": config.preset, "run": run, "stage": "train", **provenance()}
    tracker = start_run(store, title, tags, parent=parent)
    job = TrainingJob(config.train, model, snapshot, run, tracker)
    # The record is what a resume trusts. It comes before the parameters, which MLflow may refuse.
    store.write_json(_record_name(run), job.describe())
    tracker.log_params(run_params(config, model))
    tracker.log_data(snapshot, "training")
    tracker.describe(describe_run(config, model, snapshot, run))
    return job


def _check_plan(config: TrainConfig, model: ASTConfig, snapshot: Snapshot) -> None:
    plan = TrainingPlan(snapshot, config)
    check_training(plan, model)
    check_teachers(plan)


def _warn_of_leaks(config: TrainConfig, snapshot: Snapshot) -> None:
    if num_leaks := count_leaks(snapshot, config.train_splits, config.eval_split):
        log.warning(
            "%d of %d clips of %s, which this training is evaluated on, are trained on, too, or sound nearly the same:"
            " its figures will be too high; to leave such clips out of the training: --data.exclude duplicate_of_eval",
            *(num_leaks, len(snapshot.rows_of((config.eval_split,))), config.eval_split),
        )


def resume_run(run: str, store: Store, config: RunSettings, snapshot_id: str = "") -> TrackedJob:
    """Go on with a run, on its own snapshot, as the same run of MLflow.

    snapshot_id: the one that was asked for, if any. Raises ConfigError if there is no such run or it is finished,
    MismatchError if the settings say other samples, another model or another snapshot, NoClipsError if its snapshot
    is gone.
    """
    if not was_begun(run, store):
        raise ConfigError(f"expected a run named {run} in {store.root}, found {_describe_runs(store)}")
    # The history is written last, so it marks a training that has nothing left to do.
    if store.exists(history_name(run)):
        raise ConfigError(f"run {run} is finished: its epochs are in {store.url(history_name(run))}; start a new run")
    record = store.read_json(_record_name(run))
    if snapshot_id and snapshot_id != record["snapshot"]:
        raise MismatchError(
            f"run {run} trains on snapshot {record['snapshot']}, found --snapshot {snapshot_id}; omit --snapshot,"
            " or start a new run"
        )
    # Not the latest snapshot: draws depend on its id, so on another one the run could not go on at its step.
    try:
        snapshot = load_snapshot(store, record["snapshot"])
    except NoClipsError as error:
        raise NoClipsError(
            f"run {run} trains on snapshot {record['snapshot']}, which is not in {store.root} any more; restore the"
            " snapshot, or start a new run"
        ) from error
    model = dataclasses.replace(config.model, num_classes=len(snapshot.labels))
    settings = {"snapshot": snapshot.snapshot_id, "model": model, "train": config.train}
    check_same_job(run, settings, record)
    _check_plan(config.train, model, snapshot)
    for change in changed_settings(settings, record).values():
        log.warning("run %s goes on with another setting, %s", run, change)
    tracker = continue_run(store, record["tracking_run"])
    tracker.log_params(run_params(config, model))
    return TrainingJob(config.train, model, snapshot, run, tracker)


def _describe_runs(store: Store) -> str:
    names = [name.split("/")[1] for name in store.list("runs", "/run.json")]
    return ", ".join(names[-10:]) or "none at all"


def was_begun(run: str, store: Store) -> bool:
    return store.exists(_record_name(run))


def _record_name(run: str) -> str:
    return f"runs/{run}/run.json"


def history_name(run: str) -> str:
    """Return where a finished run's metrics of each epoch lie."""
    return f"runs/{run}/history.json"


@contextmanager
def ending_tracked(job: TrackedJob) -> Iterator[None]:
    """Publish what a finished run made, and end it with a status whatever happens."""
    with job.tracker.end_on_exit():
        yield
        try_publish(job.tracker, job.snapshot, job.run)


def train_rank(job: TrackedJob, world: World, stop_signal: StopSignal) -> list[Metrics]:
    """Train one rank of a run, from the run's newest checkpoint if it has one."""
    try:
        teachers = open_teachers(TrainingPlan(job.snapshot, job.config))
        history = Trainer(job, world, stop_signal, teachers).run()
    finally:
        # On every rank: what a process leaves in its queue waits for the next job on this machine.
        job.tracker.close()
    if world.is_main:
        job.store.write_json(history_name(job.run), history)
    return history
