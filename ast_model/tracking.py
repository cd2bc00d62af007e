"""MLflow: one run per training, with parameters, metrics, data, checkpoints and pictures."""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import requests
from matplotlib.figure import Figure
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ast_model.evaluate import Evaluation
from pipeline.errors import TrackingError
from pipeline.labels import Labels
from pipeline.snapshot import Snapshot
from pipeline.storage import Store

EXPERIMENT = "audioset-ast"
HEALTH_TIMEOUT_S = 5.0
MAX_CLASSES_IN_PLOT = 60


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


class TrackedRun:
    """A run on a tracking server. It is picklable: whoever has it logs to the same run."""

    def __init__(self, uri: str, run_id: str):
        self.uri = uri
        self.run_id = run_id
        self.client = MlflowClient(uri)

    def __reduce__(self):
        return TrackedRun, (self.uri, self.run_id)

    def log_params(self, params: Mapping[str, str]) -> None:
        self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [Metric(key, value, now_ms, step) for key, value in metrics.items()])

    def log_data(self, snapshot: Snapshot, context: str) -> None:
        """Name the snapshot as the run's input."""
        profile = {"num_clips": snapshot.stats["num_clips"], "mean": snapshot.mean, "std": snapshot.std}
        dataset = Dataset(
            name="audioset",
            digest=snapshot.snapshot_id,
            source_type="snapshot",
            source=snapshot.store.url(f"snapshots/{snapshot.snapshot_id}"),
            profile=pd.Series(profile).to_json(),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_classes(self, name: str, evaluation: Evaluation, labels: Labels, num_train_clips: np.ndarray) -> None:
        """Keep per-class results as one table and one picture."""
        table = class_table(evaluation, labels, num_train_clips)
        self.client.log_text(self.run_id, table.to_csv(index=False), f"classes/{name}.csv")
        self.client.log_figure(self.run_id, plot_average_precision(table), f"classes/{name}.png")

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        """Record a kept checkpoint as a model with its metrics and its place."""
        run = self.client.get_run(self.run_id)
        model = self.client.create_logged_model(
            run.info.experiment_id, name=name, source_run_id=self.run_id, tags={"checkpoint": address}, model_type="AST"
        )
        now_ms = int(time.time() * 1000)
        step = int(metrics["epoch"])
        values = [
            Metric(key, value, now_ms, step, model_id=model.model_id, run_id=self.run_id)
            for key, value in metrics.items()
            if key != "epoch"
        ]
        self.client.log_batch(self.run_id, values)
        self.client.finalize_logged_model(model.model_id, "READY")

    def end(self, status: str) -> None:
        """Set the final status: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


def start_run(store: Store, name: str, tags: Mapping[str, str], experiment: str = EXPERIMENT) -> TrackedRun:
    """Create a run; raise TrackingError if the server can't be used."""
    uri = tracking_uri(store)
    check_server(uri)
    client = MlflowClient(uri)
    try:
        run = client.create_run(_experiment_id(client, uri, store, experiment), run_name=name)
        client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    except MlflowException as error:
        raise TrackingError(f"can't start a run at {uri}: {error}; look at MLFLOW_TRACKING_URI") from error
    return TrackedRun(uri, run.info.run_id)


def snapshots_in_use(store: Store) -> set[str]:
    """Return the snapshots that tracked runs name, whatever their state."""
    uri = tracking_uri(store)
    check_server(uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found: set[str] = set()
    token: str | None = ""
    while experiment is not None and token is not None:
        runs = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token or None)
        found |= {run.data.tags["snapshot"] for run in runs if "snapshot" in run.data.tags}
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


def _experiment_id(client: MlflowClient, uri: str, store: Store, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    artifacts = store.url("mlartifacts") if uri.startswith("sqlite:") else None
    return client.create_experiment(name, artifact_location=artifacts)


def class_table(evaluation: Evaluation, labels: Labels, num_train_clips: np.ndarray) -> pd.DataFrame:
    """Return a row per class: average precision, AUC, clips in evaluation and training."""
    return pd.DataFrame(
        {
            "mid": labels.mids,
            "name": labels.names,
            "average_precision": evaluation.metrics.average_precision,
            "auc": evaluation.metrics.auc_per_class,
            "num_eval_clips": evaluation.targets.sum(axis=0),
            "num_train_clips": num_train_clips,
        }
    )


def plot_average_precision(table: pd.DataFrame) -> Figure:
    """Draw average precision per class, best first, beside the number of training clips."""
    shown = table.dropna(subset="average_precision").sort_values("average_precision", ascending=False)
    if len(shown) > MAX_CLASSES_IN_PLOT:
        half = MAX_CLASSES_IN_PLOT // 2
        shown = pd.concat([shown.head(half), shown.tail(half)])
    figure = Figure(figsize=(8, 1 + 0.25 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))
    axes.barh(places, shown["average_precision"], color="tab:blue")
    names = [f"{name} ({count})" for name, count in zip(shown["name"], shown["num_train_clips"], strict=True)]
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision (in brackets: training clips)")
    axes.set_title(f"{len(shown)} of {len(table)} classes, mean {table['average_precision'].mean():.3f}")
    return figure
