"""Deliver queued events to the MLflow server, with each step of a metric at most once."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelStatus, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ast_model.tracking.heartbeat import read_owner
from ast_model.tracking.queue import Event, MetricsQueue, RefusedError
from ast_model.tracking.tags import CHECKPOINT_TAG, EPOCH_TAG, SNAPSHOT_TAG
from pipeline.errors import TrackingError

QUEUES = Path("~/.cache/audioset-ast/tracking")
"""Folder of this machine's queues, one subfolder per server."""
MODEL_TYPE = "AST"
MAX_METRICS_PER_BATCH = 1000
"""Limit of MLflow's REST API per request."""
LEFTOVER_TIMEOUT_S = 5.0
"""Longest wait for the events of one killed process, because a new run must not wait for old ones."""
TRANSIENT_ERRORS = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ENDPOINT_NOT_FOUND"}
"""MLflow's error codes that are worth a retry."""


class Delivery:
    """Sends the events of a run to the server. Skips steps that the server has, because MLflow would store both."""

    def __init__(self, client: MlflowClient, run_id: str):
        self.client, self.run_id = client, run_id
        self._run: Run | None = None
        self._steps: dict[str, set[int]] = {}

    def __call__(self, events: Sequence[Event]) -> None:
        try:
            self._deliver(events)
        except Exception as error:
            self._run, self._steps = None, {}  # the server may have stored a part of the events
            if isinstance(error, MlflowException) and error.error_code not in TRANSIENT_ERRORS:
                raise RefusedError(error.message) from error
            raise

    def _deliver(self, events: Sequence[Event]) -> None:
        self._run = self._run or self.client.get_run(self.run_id)
        metrics: list[Metric] = []
        for event in events:
            if event["type"] == "metrics":
                metrics += self._new_metrics(event)
                continue
            metrics = self._send(metrics)  # first, to keep the order: a run ends after its last metrics
            if event["type"] == "checkpoint":
                self._log_checkpoint(event)
            elif event["type"] == "params":
                log_params(self.client, self.run_id, event["values"])
            elif not self._has_new_owner(event):
                self.client.set_terminated(self.run_id, event["status"], end_time=event["time_ms"])
        self._send(metrics)

    def _send(self, metrics: Sequence[Metric]) -> list[Metric]:
        unique = list({(metric.key, metric.step): metric for metric in metrics}.values())
        for start in range(0, len(unique), MAX_METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, unique[start : start + MAX_METRICS_PER_BATCH])
        for metric in unique:
            self._steps[metric.key].add(metric.step)
        return []

    def _has_new_owner(self, event: Event) -> bool:
        """Return True if another process continued the run after this event, for example on another machine."""
        owner = read_owner(self.client.get_run(self.run_id).data.tags)
        return owner is not None and owner.seen_at * 1000 > event["time_ms"]

    def _new_metrics(self, event: Event, **more: str) -> list[Metric]:
        step, time_ms = event["step"], event["time_ms"]
        values = {key: value for key, value in event["values"].items() if step not in self._known_steps(key)}
        return [Metric(key, value, time_ms, step, run_id=self.run_id, **more) for key, value in values.items()]

    def _known_steps(self, key: str) -> set[int]:
        """Return the steps of a metric on the server.

        All steps rather than the last one, because another machine may deliver later steps first.
        """
        if key not in self._steps:
            assert self._run is not None
            is_known = key in self._run.data.metrics
            history = self.client.get_metric_history(self.run_id, key) if is_known else []
            self._steps[key] = {metric.step for metric in history}
        return self._steps[key]

    def _log_checkpoint(self, event: Event) -> None:
        assert self._run is not None
        experiment_id = self._run.info.experiment_id
        model = find_model(self.client, experiment_id, self.run_id, event["name"])
        if model is None:
            tags = {CHECKPOINT_TAG: event["address"], SNAPSHOT_TAG: event["snapshot"], EPOCH_TAG: str(event["step"])}
            model = self.client.create_logged_model(
                experiment_id, event["name"], self.run_id, tags, model_type=MODEL_TYPE
            )
        self._send(self._new_metrics(event, model_id=model.model_id, **dataset_fields(self._run)))
        if model.status != LoggedModelStatus.READY:
            self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters. MLflow's parameters are immutable, so a changed value becomes a tag, `resumed.NAME`."""
    stored = client.get_run(run_id).data.params
    changed = {key: value for key, value in params.items() if stored.get(key, value) != value}
    new = [Param(key, value) for key, value in params.items() if key not in stored]
    client.log_batch(run_id, params=new, tags=[RunTag(f"resumed.{key}", value) for key, value in changed.items()])


def find_model(client: MlflowClient, experiment_id: str, run_id: str, name: str) -> LoggedModel | None:
    """Return the newest logged model of a run with this name, or None."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    return found[0] if found else None


def dataset_fields(run: Run) -> dict[str, str]:
    """Return the fields of a `Metric` that link it to the run's dataset; empty if the run has none."""
    if not (run.inputs and run.inputs.dataset_inputs):
        return {}
    dataset = run.inputs.dataset_inputs[0].dataset
    return {"dataset_name": dataset.name, "dataset_digest": dataset.digest}


def queue_folder(uri: str) -> Path:
    """Return this machine's folder of queued events for a server."""
    return QUEUES.expanduser() / hashlib.sha256(uri.encode()).hexdigest()[:12]


def deliver_leftover_events(client: MlflowClient, uri: str) -> None:
    """Deliver the queued events of killed processes on this machine."""
    for file in sorted(queue_folder(uri).glob("*.jsonl")):
        try:
            queue = MetricsQueue(file.parent, file.stem, Delivery(client, file.stem))
        except TrackingError:
            continue  # locked: its process is alive and delivers them
        queue.close(LEFTOVER_TIMEOUT_S)
