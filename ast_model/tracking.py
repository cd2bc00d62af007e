"""MLflow: one run per training, with its parameters, metrics, data and end, whatever happens to its processes."""

import dataclasses
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ast_model.outbox import Letter, Outbox, RefusedError
from ast_model.tracking_alive import BEAT_TAG, PROCESS_TAG, Heartbeat, close_dead_runs, is_alive, is_ours, sign_of_life
from pipeline.errors import TrackingError
from pipeline.snapshot import Snapshot
from pipeline.storage import Store

EXPERIMENT = "audioset-ast"
DATASET = "audioset"
MODEL_TYPE = "AST"
HEALTH_TIMEOUT_S = 5.0
END_TIMEOUT_S = 120.0
"""How long the end of a run waits for a server that is away."""
OUTBOXES = Path("~/.cache/audioset-ast/tracking")
NOTE_TAG, PARENT_TAG, CHECKPOINT_TAG, SNAPSHOT_TAG = (
    "mlflow.note.content",
    "mlflow.parentRunId",
    "checkpoint",
    "snapshot",
)
MAX_METRICS_PER_BATCH = 1000
logging.getLogger("mlflow").setLevel(logging.WARNING)
PASSING_ERRORS = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ENDPOINT_NOT_FOUND"}
"""Codes of MLflow's errors after which it is worth while to try again."""


def tracking_uri(store: Store) -> str:
    """Return `MLFLOW_TRACKING_URI`, or a sqlite file in the store's folder."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not store.is_local:
        raise TrackingError(
            f"expected MLFLOW_TRACKING_URI to name a tracking server, since {store.root} is no local folder; found"
            " nothing. Set it, for example to http://127.0.0.1:5000"
        )
    return f"sqlite:///{store.path('mlflow.db')}"


def open_client(uri: str) -> MlflowClient:
    """Return a client that gives up soon: what may wait for a server that is away waits in the outbox."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return MlflowClient(uri)


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Turn nested dataclasses into flat parameters such as `train.augment.noise`."""
    flat: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return flat


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's errors into TrackingError."""
    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        raise TrackingError(f"{uri}: {error}; look at MLFLOW_TRACKING_URI and at the server's log") from error


class TrackedRun:
    """A run on a tracking server. It is picklable: whoever has it logs to the same run.

    What is logged while training goes through an outbox on this machine: nothing waits for the server, and no step is
    logged twice.
    """

    def __init__(self, uri: str, run_id: str, snapshot_id: str = ""):
        self.uri, self.run_id, self.snapshot_id = uri, run_id, snapshot_id
        self.client = open_client(uri)
        self._outbox: Outbox | None = None
        self._heartbeat: Heartbeat | None = None

    def __reduce__(self):
        return TrackedRun, (self.uri, self.run_id, self.snapshot_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters; one that is there with another value becomes a tag, `resumed.NAME`."""
        there = self.client.get_run(self.run_id).data.params
        changed = {key: value for key, value in params.items() if there.get(key, value) != value}
        new = [Param(key, value) for key, value in params.items() if key not in there]
        tags = [RunTag(f"resumed.{key}", value) for key, value in changed.items()]
        self.client.log_batch(self.run_id, params=new, tags=tags)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page shows. Raises TrackingError."""
        with tracking_errors(self.uri):
            self.log_tags({NOTE_TAG: markdown})

    @property
    def description(self) -> str:
        with tracking_errors(self.uri):
            return self.client.get_run(self.run_id).data.tags.get(NOTE_TAG, "")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics, later and once: what is known of a step already stays as it is."""
        self._post({"kind": "metrics", "step": step, "values": dict(metrics)})

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        """Record a kept checkpoint as a model with its metrics, against the epoch, and its place."""
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        letter = {"kind": "checkpoint", "name": name, "address": address, "snapshot": self.snapshot_id}
        self._post({**letter, "step": int(metrics["epoch"]), "values": values})

    def log_data(self, snapshot: Snapshot, context: str) -> None:
        """Name the snapshot as the run's data, with counts, statistics and place."""
        self.snapshot_id = snapshot.snapshot_id
        address = snapshot.store.url(f"snapshots/{snapshot.snapshot_id}")
        scheme = address.split("://")[0] if "://" in address else "local"
        profile = {f"num_clips.{split}": count for split, count in snapshot.stats["num_clips"].items()}
        profile |= {"num_classes": len(snapshot.labels), "fbank_mean": snapshot.mean, "fbank_std": snapshot.std}
        profile["fingerprint"] = snapshot.manifest["fingerprint"]
        dataset = Dataset(
            name=DATASET,
            digest=snapshot.snapshot_id,
            source_type=scheme,
            source=json.dumps({"uri": address}),
            profile=json.dumps(profile),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])
        self.log_tags({SNAPSHOT_TAG: snapshot.snapshot_id})

    def log_files(self, folder: Path, place: str) -> None:
        """Keep files as artifacts, now. Raises TrackingError."""
        with tracking_errors(self.uri):
            self.client.log_artifacts(self.run_id, str(folder), place)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of a metric that were delivered so far."""
        with tracking_errors(self.uri):
            history = sorted(self.client.get_metric_history(self.run_id, key), key=lambda metric: metric.step)
        return [metric.step for metric in history], [metric.value for metric in history]

    def show_life(self) -> None:
        """Say from now on that this process works on the run."""
        self._heartbeat = Heartbeat(self.client, self.run_id)

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED or KILLED. With the server away it is set later."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._post({"kind": "end", "status": status})
        self.close(END_TIMEOUT_S)

    def close(self, timeout_s: float = END_TIMEOUT_S) -> None:
        """Wait until all that was logged here is delivered, or for as long as that."""
        if self._outbox is not None:
            outbox, self._outbox = self._outbox, None
            outbox.close(timeout_s)

    def _post(self, letter: Letter) -> None:
        if self._outbox is None:
            self._outbox = Outbox(outbox_folder(self.uri), self.run_id, Delivery(self.client, self.run_id))
        self._outbox.put({**letter, "time_ms": int(time.time() * 1000)})


class Delivery:
    """Brings letters of a run to the server, each step once, however often it is called."""

    def __init__(self, client: MlflowClient, run_id: str):
        self.client, self.run_id = client, run_id
        self._run: Run | None = None
        self._reached: dict[str, int] = {}

    def __call__(self, letters: Sequence[Letter]) -> None:
        try:
            self._run = self._run or self.client.get_run(self.run_id)
            metrics: list[Metric] = []
            for letter in letters:
                if letter["kind"] == "metrics":
                    metrics += self._new_metrics(letter)
                    continue
                metrics = self._send(metrics)
                if letter["kind"] == "checkpoint":
                    self._log_checkpoint(letter)
                else:
                    self.client.set_terminated(self.run_id, letter["status"], end_time=letter["time_ms"])
            self._send(metrics)
        except MlflowException as error:
            if error.error_code in PASSING_ERRORS:
                raise
            raise RefusedError(error.message) from error

    def _send(self, metrics: list[Metric]) -> list[Metric]:
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics[start : start + MAX_METRICS_PER_BATCH])
        for metric in metrics:
            self._reached[metric.key] = max(metric.step, self._reached.get(metric.key, metric.step))
        return []

    def _new_metrics(self, letter: Letter, **more: str) -> list[Metric]:
        step, time_ms = letter["step"], letter["time_ms"]
        values = {key: value for key, value in letter["values"].items() if step > self._step_reached(key)}
        return [Metric(key, value, time_ms, step, run_id=self.run_id, **more) for key, value in values.items()]

    def _step_reached(self, key: str) -> int:
        """Return the last step that the server has of a metric, so that a resumed training doesn't log it again."""
        if key not in self._reached:
            assert self._run is not None
            known = key in self._run.data.metrics
            history = self.client.get_metric_history(self.run_id, key) if known else []
            self._reached[key] = max((metric.step for metric in history), default=-1)
        return self._reached[key]

    def _log_checkpoint(self, letter: Letter) -> None:
        assert self._run is not None
        experiment_id = self._run.info.experiment_id
        model = find_model(self.client, experiment_id, self.run_id, letter["name"])
        if model is None:
            tags = {CHECKPOINT_TAG: letter["address"], SNAPSHOT_TAG: letter["snapshot"], "epoch": str(letter["step"])}
            model = self.client.create_logged_model(
                experiment_id, letter["name"], self.run_id, tags, model_type=MODEL_TYPE
            )
        data = {"dataset_name": DATASET, "dataset_digest": letter["snapshot"]} if letter["snapshot"] else {}
        self._send(self._new_metrics(letter, model_id=model.model_id, **data))
        if model.status != LoggedModelStatus.READY:
            self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def find_model(client: MlflowClient, experiment_id: str, run_id: str, name: str) -> LoggedModel | None:
    """Return the model of a run with a name, the newest of several."""
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'")
    return found[0] if found else None


def outbox_folder(uri: str) -> Path:
    """Return where on this machine entries for a server wait."""
    return OUTBOXES.expanduser() / hashlib.sha256(uri.encode()).hexdigest()[:12]


def deliver_left(client: MlflowClient, uri: str) -> None:
    """Deliver what processes that are gone had not; runs that are being worked on are left alone."""
    for file in sorted(outbox_folder(uri).glob("*.jsonl")):
        try:
            outbox = Outbox(file.parent, file.stem, Delivery(client, file.stem))
        except TrackingError:
            continue
        outbox.close(HEALTH_TIMEOUT_S)


def start_run(
    store: Store, name: str, tags: Mapping[str, str], experiment: str = EXPERIMENT, parent: TrackedRun | None = None
) -> TrackedRun:
    """Create a run, a child of `parent` if there is one; raise TrackingError if the server can't be used.

    Runs of the experiment that were left RUNNING by processes that are gone are closed.
    """
    uri = tracking_uri(store)
    check_server(uri)
    client = open_client(uri)
    all_tags = {**tags, **sign_of_life()} | ({PARENT_TAG: parent.run_id} if parent else {})
    try:
        experiment_id = open_experiment(client, uri, store, experiment)
        deliver_left(client, uri)
        close_dead_runs(client, experiment_id)
        run = client.create_run(experiment_id, run_name=name, tags=all_tags)
    except MlflowException as error:
        raise TrackingError(f"can't start a run at {uri}: {error}; look at MLFLOW_TRACKING_URI") from error
    tracked = TrackedRun(uri, run.info.run_id)
    tracked.show_life()
    return tracked


def continue_run(store: Store, run_id: str, experiment: str = EXPERIMENT) -> TrackedRun:
    """Go on with a run. Raises TrackingError if it isn't there, is another experiment's, or is being worked on."""
    uri = tracking_uri(store)
    check_server(uri)
    client = open_client(uri)
    try:
        experiment_id = open_experiment(client, uri, store, experiment)
        deliver_left(client, uri)
        close_dead_runs(client, experiment_id)
        run = client.get_run(run_id)
    except MlflowException as error:
        raise TrackingError(f"can't go on with run {run_id} at {uri}: {error}; look at MLFLOW_TRACKING_URI") from error
    if run.info.experiment_id != experiment_id:
        found = client.get_experiment(run.info.experiment_id).name
        raise TrackingError(
            f"expected run {run_id} in the experiment {experiment!r} of {uri}, found it in {found!r}: it is no training"
            " of this project; start a new run"
        )
    tags = run.data.tags
    owner_tags = sign_of_life()
    if run.info.status == "RUNNING" and not is_ours(tags) and owner_tags.keys() <= tags.keys() and is_alive(tags):
        seen = time.strftime("%H:%M:%S", time.localtime(float(tags[BEAT_TAG])))
        raise TrackingError(
            f"expected nobody to work on run {run.info.run_name}, found {tags[PROCESS_TAG]}, seen at {seen}: wait for"
            " it, stop it, or start a new run"
        )
    client.update_run(run_id, status="RUNNING")
    tracked = TrackedRun(uri, run_id, tags.get(SNAPSHOT_TAG, ""))
    tracked.log_tags(owner_tags)
    tracked.show_life()
    return tracked


def snapshots_in_use(store: Store) -> set[str]:
    """Return the snapshots that tracked runs name, whatever their state."""
    uri = tracking_uri(store)
    check_server(uri)
    client = open_client(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found: set[str] = set()
    token: str | None = ""
    while experiment is not None and token is not None:
        runs = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token or None)
        found |= {run.data.tags[SNAPSHOT_TAG] for run in runs if SNAPSHOT_TAG in run.data.tags}
        token = runs.token or None
    return found


def check_server(uri: str) -> None:
    """Raise TrackingError at once, where MLflow's client would retry for minutes."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        response = requests.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_TIMEOUT_S)
        found = f"HTTP {response.status_code}, {response.text[:40]!r}"
        is_mlflow = response.ok and response.text.strip() == "OK"
    except requests.RequestException as error:
        found, is_mlflow = str(error), False
    if not is_mlflow:
        raise TrackingError(
            f"expected an MLflow server at {uri}, found {found}. Start one (make mlflow), mend MLFLOW_TRACKING_URI, or"
            " unset it to use a local database"
        )


def open_experiment(client: MlflowClient, uri: str, store: Store, name: str = EXPERIMENT) -> str:
    """Return the id of an experiment, made if it isn't there; raise TrackingError if it was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        artifacts = store.url("mlartifacts") if uri.startswith("sqlite:") else None
        # MLflow's pages else take it for one of language models.
        return client.create_experiment(name, artifacts, tags={"mlflow.experimentKind": "custom_model_development"})
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"expected the experiment {name!r} at {uri}, found it deleted. Restore it:"
            f" MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return experiment.experiment_id
