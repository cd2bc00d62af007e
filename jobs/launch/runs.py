"""Runs by name: begun once, resumed on purpose, ended with a status."""

import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ast_model.config import ASTConfig, TrainConfig
from ast_model.distributed import World
from ast_model.tracking.publish import publish_or_say_how
from ast_model.tracking.run import TrackedRun, continue_run, start_run
from ast_model.training.checks import check_training
from ast_model.training.job import Job, StopSignal
from ast_model.training.reporter import Metrics
from ast_model.training.trainer import Trainer
from jobs.launch.provenance import provenance
from jobs.launch.titles import RunConfig, describe_run, run_params, run_title
from pipeline.errors import ConfigError, MismatchError, NoClipsError, StoppedError
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

PLAN_SETTINGS = (
    "train_splits eval_split draws_per_epoch sampler global_batch_size seed teachers teacher_share"
    " augment.mixup_probability augment.mixup_alpha average_from_epoch"
).split()
"""What decides which samples come when: a run keeps it to its end. The rest may be changed when it is resumed."""


@dataclass(frozen=True)
class RunSettings:
    """What a rank needs to join a run; small, and picklable."""

    store: Store
    snapshot_id: str
    run: str
    model: ASTConfig
    train: TrainConfig
    tracker: TrackedRun


def new_run_name(preset: str) -> str:
    return f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def begin_run(config: RunConfig, snapshot: Snapshot, run: str, parent: TrackedRun | None = None) -> RunSettings:
    """Give a new run its record, in the store and in MLflow. Its model has the snapshot's classes.

    Raises, before anything is recorded, if the store can't be written or the data can't be learnt from.
    """
    model = dataclasses.replace(config.model, num_classes=len(snapshot.labels))
    store = snapshot.store
    store.check_writable()
    check_training(config.train, model, snapshot)
    title = run_title(config, model, snapshot, run)
    tags = {"preset": config.preset, "run": run, "stage": "train", **provenance()}
    tracker = start_run(store, title, tags, parent=parent)
    record = {"snapshot": snapshot.snapshot_id, "tracking_run": tracker.run_id}
    store.write_json(_record_name(run), record | {"model": asdict(model), "train": asdict(config.train)})
    tracker.log_params(run_params(config, model))
    tracker.log_data(snapshot, "training")
    tracker.describe(describe_run(config, model, snapshot, run))
    return RunSettings(store, snapshot.snapshot_id, run, model, config.train, tracker)


def resume_run(run: str, store: Store, config: RunConfig) -> tuple[RunSettings, Snapshot]:
    """Go on with a run, on its own snapshot, as the same run of MLflow.

    Raises ConfigError if there is no such run or it is finished, MismatchError if the settings say other samples or
    another model, NoClipsError if its snapshot is gone.
    """
    if not was_begun(run, store):
        raise ConfigError(f"expected a run named {run} in {store.root}, found {_describe_runs(store)}")
    if store.exists(history_name(run)):
        raise ConfigError(f"run {run} is finished: its epochs are in {store.url(history_name(run))}; start a new run")
    record = store.read_json(_record_name(run))
    try:
        snapshot = load_snapshot(store, record["snapshot"])
    except NoClipsError as error:
        raise NoClipsError(
            f"run {run} learns from snapshot {record['snapshot']}, which is not in {store.root} any more; restore the"
            " snapshot, or start a new run"
        ) from error
    model = dataclasses.replace(config.model, num_classes=len(snapshot.labels))
    _check_settings(run, record, model, config.train)
    check_training(config.train, model, snapshot)
    tracker = continue_run(store, record["tracking_run"])
    tracker.log_params(run_params(config, model))
    return RunSettings(store, snapshot.snapshot_id, run, model, config.train, tracker), snapshot


def _check_settings(run: str, record: Mapping[str, Any], model: ASTConfig, train: TrainConfig) -> None:
    then = _flat({"model": record["model"], "train": record["train"]})
    now = _flat(json.loads(json.dumps({"model": asdict(model), "train": asdict(train)})))
    differing = [name for name in now if then.get(name) != now[name]]
    details = {name: f"{name}: {then.get(name)} then, {now[name]} now" for name in differing}
    fixed = [name for name in differing if name.startswith("model.") or name.removeprefix("train.") in PLAN_SETTINGS]
    if fixed:
        raise MismatchError(
            f"run {run} was begun with other settings ({'; '.join(details[name] for name in fixed)}); resume it with"
            " those, or start a new run"
        )
    for detail in details.values():
        log.warning("run %s goes on with another %s", run, detail)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


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
def ending_tracked(settings: RunSettings) -> Iterator[None]:
    """Publish what a finished run made, and end it with a status whatever happens."""
    with ending(settings.tracker):
        yield
        snapshot = load_snapshot(settings.store, settings.snapshot_id)
        publish_or_say_how(settings.tracker, snapshot, settings.run)


@contextmanager
def ending(tracker: TrackedRun) -> Iterator[None]:
    """End a run with a status whatever happens."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        status = "KILLED"
        raise
    finally:
        tracker.end(status)


def train_rank(settings: RunSettings, world: World, watch: StopSignal) -> list[Metrics]:
    """Take one rank's part in a run, from its newest checkpoint if it has one."""
    snapshot = load_snapshot(settings.store, settings.snapshot_id)
    job = Job(settings.train, settings.model, snapshot, settings.run, settings.tracker)
    try:
        history = Trainer(job, world, watch).run()
    finally:
        settings.tracker.close()
    if world.is_main:
        settings.store.write_json(history_name(settings.run), history)
    return history
