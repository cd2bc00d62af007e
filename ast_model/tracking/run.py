"""MLflow runs that survive restarts. A training is a single run, even if its processes die repeatedly."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import Dataset, DatasetInput, InputTag, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ast_model.tracking.delivery import Delivery, deliver_leftover_events, log_params, queue_folder
from ast_model.tracking.diagnosis import suggest_fix, summarise_error
from ast_model.tracking.heartbeat import Heartbeat, close_dead_runs, owner_tag, read_owner
from ast_model.tracking.queue import Event, MetricsQueue
from ast_model.tracking.server import EXPERIMENT, connect, open_client, open_experiment, tracking_errors
from ast_model.tracking.tags import NOTE_TAG, PARENT_TAG, SNAPSHOT_TAG
from pipeline.errors import StoppedError, TrackingError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import SnapshotFiles
from pipeline.store.storage import Store

END_TIMEOUT_S = 120.0
"""Longest wait at the end of a run for an unreachable server."""


class TrackedRun:
    """A run on a tracking server. Picklable: all processes that hold a copy log to the same run.

    Events of a training run go through a queue on this machine, so that training never waits for the server and no step
    is logged twice.
    """

    def __init__(self, uri: str, run_id: str, snapshot_id: str = ""):
        self.uri, self.run_id, self.snapshot_id = uri, run_id, snapshot_id
        self.client = open_client(uri)
        self._queue: MetricsQueue | None = None
        self._heartbeat: Heartbeat | None = None

    def __reduce__(self):
        return TrackedRun, (self.uri, self.run_id, self.snapshot_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters. A value that differs from the logged one becomes a tag, `resumed.NAME`."""
        log_params(self.client, self.run_id, params)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def describe(self, markdown: str) -> None:
        """Set the description on the run's page. Raises TrackingError."""
        with tracking_errors(self.client):
            self.log_tags({NOTE_TAG: markdown})

    @property
    def description(self) -> str:
        with tracking_errors(self.client):
            return self.client.get_run(self.run_id).data.tags.get(NOTE_TAG, "")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue the finite metrics. Steps that the server has from before a resume remain unchanged."""
        self._post({"type": "metrics", "step": step, "values": _finite(metrics)})

    def log_late_params(self, facts: Mapping[str, str]) -> None:
        """Queue parameters that are known only once the training runs; otherwise like `log_params`."""
        self._post({"type": "params", "values": dict(facts)})

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        """Queue an event that logs a saved checkpoint as a model, with address and metrics. The epoch is the step."""
        values = {key: value for key, value in _finite(metrics).items() if key != "epoch"}
        event = {"type": "checkpoint", "name": name, "address": address, "snapshot": self.snapshot_id}
        self._post({**event, "step": int(metrics["epoch"]), "values": values})

    def log_data(self, snapshot: Snapshot, context: str) -> None:
        """Log the snapshot as the run's dataset, with clip counts, statistics and address."""
        self.snapshot_id = snapshot.snapshot_id
        address = snapshot.store.url(SnapshotFiles(snapshot.whole_id).folder)
        scheme = address.split("://")[0] if "://" in address else "local"
        profile = {f"num_clips.{split}": count for split, count in snapshot.stats["num_clips"].items()}
        profile |= {"num_classes": len(snapshot.labels), "fbank_mean": snapshot.mean, "fbank_std": snapshot.std}
        profile["fingerprint"] = snapshot.manifest["fingerprint"]
        if "selection" in snapshot.manifest:
            profile["selection"] = snapshot.manifest["selection"]
        dataset = Dataset(
            name=dataset_name(snapshot.store),
            digest=snapshot.snapshot_id,
            source_type=scheme,
            source=json.dumps({"uri": address}),
            profile=json.dumps(profile),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        self.log_tags({SNAPSHOT_TAG: snapshot.snapshot_id})

    def log_files(self, folder: Path, place: str) -> None:
        """Upload the files of a folder as artifacts, without the queue. Raises TrackingError."""
        with tracking_errors(self.client):
            self.client.log_artifacts(self.run_id, str(folder), place)

    def metric_history(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a metric that the server has. Raises TrackingError."""
        with tracking_errors(self.client):
            history = sorted(self.client.get_metric_history(self.run_id, key), key=lambda metric: metric.step)
        return [metric.step for metric in history], [metric.value for metric in history]

    def start_heartbeat(self) -> None:
        """Start a thread that marks the run as owned by this process."""
        self._heartbeat = Heartbeat(self.client, self.run_id)

    @contextmanager
    def end_on_exit(self) -> Iterator[None]:
        """End the run when the block exits: FINISHED, KILLED on an interrupt or SIGTERM, FAILED on other exceptions."""
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, StoppedError, SystemExit):
            status = "KILLED"
            raise
        finally:
            self.end(status)

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED or KILLED. The queue holds it while the server is unreachable."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._post({"type": "end", "status": status})
        self.close(END_TIMEOUT_S)

    def close(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Wait up to `timeout_s` for the delivery of all events that this process logged."""
        if self._queue is not None:
            queue, self._queue = self._queue, None
            queue.close(timeout_s)

    def _post(self, event: Event) -> None:
        if self._queue is None:
            self._queue = MetricsQueue(queue_folder(self.uri), self.run_id, Delivery(self.client, self.run_id))
        self._queue.put({**event, "time_ms": int(time.time() * 1000)})


def start_run(
    store: Store, name: str, tags: Mapping[str, str], experiment: str = EXPERIMENT, parent: TrackedRun | None = None
) -> TrackedRun:
    """Create a run, optionally as a child of `parent`. Raises TrackingError if the server is unusable.

    Also delivers the queued events of killed processes on this machine, and sets their runs to FAILED.
    """
    client = connect(store)
    all_tags = {**tags, **owner_tag()} | ({PARENT_TAG: parent.run_id} if parent else {})
    try:
        experiment_id = _open_experiment(client, store, experiment)
        run = client.create_run(experiment_id, run_name=name, tags=all_tags)
    except MlflowException as error:
        uri = client.tracking_uri
        reason = f"{summarise_error(error)}; {suggest_fix(uri, error)}"
        raise TrackingError(f"can't start a run at {uri}: {reason}") from error
    tracked = to_tracked_run(client, run)
    tracked.start_heartbeat()
    return tracked


def continue_run(store: Store, run_id: str, experiment: str = EXPERIMENT) -> TrackedRun:
    """Continue a run. Raises TrackingError if it is missing, is owned by a live process, or belongs to another
    experiment."""
    client = connect(store)
    uri = client.tracking_uri
    try:
        experiment_id = _open_experiment(client, store, experiment)
        run = client.get_run(run_id)
    except MlflowException as error:
        reason = f"{summarise_error(error)}; {suggest_fix(uri, error)}"
        raise TrackingError(f"can't continue run {run_id} at {uri}: {reason}") from error
    if run.info.experiment_id != experiment_id:
        found = client.get_experiment(run.info.experiment_id).name
        raise TrackingError(
            f"expected run {run_id} in the experiment {experiment!r} of {uri}, found it in {found!r}; start a new run"
        )
    owner = read_owner(run.data.tags)
    # The same process may return to a run that it left RUNNING, for example after a failed attempt.
    if run.info.status == "RUNNING" and owner is not None and not owner.is_this_process and owner.is_alive:
        raise TrackingError(
            f"expected run {run.info.run_name} to have no live process, found {owner}: wait for it, stop it, or start a"
            " new run"
        )
    client.update_run(run_id, status="RUNNING")
    tracked = to_tracked_run(client, run)
    tracked.log_tags(owner_tag())
    tracked.start_heartbeat()
    return tracked


def _open_experiment(client: MlflowClient, store: Store, name: str) -> str:
    """Open an experiment, deliver the queued events of killed processes, and close the runs of killed processes."""
    experiment_id = open_experiment(client, store, name)
    deliver_leftover_events(client, client.tracking_uri)  # first, because a queue may contain the end of its run
    close_dead_runs(client, experiment_id)
    return experiment_id


def to_tracked_run(client: MlflowClient, run: Run) -> TrackedRun:
    return TrackedRun(client.tracking_uri, run.info.run_id, run.data.tags.get(SNAPSHOT_TAG, ""))


def dataset_name(store: Store) -> str:
    """Return the name of a store's dataset, which is the name of its folder."""
    return store.base.rsplit("/", 1)[-1]


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    # MLflow would store an infinite value as 1.8e308.
    return {key: value for key, value in metrics.items() if math.isfinite(value)}
