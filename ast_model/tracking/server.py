"""Connect to the tracking server, open its experiments and convert its errors."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from alembic.util import CommandError
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from ast_model.tracking.diagnosis import suggest_fix, summarise_error
from ast_model.tracking.relocate import rewrite_store_paths
from pipeline.errors import TrackingError
from pipeline.store.layout import MLFLOW_ARTIFACTS, MLFLOW_DATABASE
from pipeline.store.storage import Store

EXPERIMENT, PREPROCESSING = "audioset-ast", "audioset-preprocess"
"""Names of the experiments for training runs and for preprocessing runs."""
HEALTH_TIMEOUT_S = 5.0
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # the queue reports a lost server, once


def tracking_uri(store: Store) -> str:
    """Return `MLFLOW_TRACKING_URI`, by default the SQLite file in the store's folder.

    Raises TrackingError for a remote store without `MLFLOW_TRACKING_URI`.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    if not store.is_local:
        raise TrackingError(
            f"expected MLFLOW_TRACKING_URI to name a tracking server, because {store.root} is not a local folder; found"
            " it unset. Set it, for example to http://127.0.0.1:5000"
        )
    return f"sqlite:///{store.path(MLFLOW_DATABASE)}"


def connect(store: Store) -> MlflowClient:
    """Return a client for the tracking server of a store. Raises TrackingError if the server is unusable.

    Updates the paths in the store's own database if the store was moved.
    """
    uri = tracking_uri(store)
    if store.is_local and uri == f"sqlite:///{store.path(MLFLOW_DATABASE)}":
        rewrite_store_paths(Path(store.path("")))
    check_server(uri)
    return open_client(uri)


def open_client(uri: str) -> MlflowClient:
    """Return a client with few retries and short timeouts, because events for an unreachable server wait in the queue.

    Raises TrackingError if the database can't be opened.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        return MlflowClient(uri)
    except (SQLAlchemyError, CommandError, MlflowException) as error:  # of the database, its migrations and MLflow
        raise TrackingError(f"can't open {uri}: {summarise_error(error)}; {suggest_fix(uri, error)}") from error


def check_server(uri: str) -> None:
    """Raise TrackingError at once unless an MLflow server answers at `uri`. MLflow's client would retry for minutes."""
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
            f"expected an MLflow server at {uri}, found {found}. Start one (make mlflow), correct MLFLOW_TRACKING_URI,"
            " or unset it to use a local database"
        )


def runs_page_url(address: str, name: str = EXPERIMENT) -> str:
    """Return the URL of the page that lists an experiment's runs, or of the list of experiments if it does not exist.

    The server's bare address opens an overview of language models without any runs.
    """
    experiment = open_client(address).get_experiment_by_name(name)
    page = f"experiments/{experiment.experiment_id}/runs" if experiment else "experiments"
    return f"{address.rstrip('/')}/#/{page}?workflowType=machine_learning"


def open_experiment(client: MlflowClient, store: Store, name: str = EXPERIMENT) -> str:
    """Return the id of an experiment, created if needed. Raises TrackingError if the experiment was deleted."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # A server configures its artifact location. For a bare database, MLflow would use the working directory.
        artifacts = store.url(MLFLOW_ARTIFACTS) if client.tracking_uri.startswith("sqlite:") else None
        # Without this tag, MLflow's pages show views for language models.
        return client.create_experiment(name, artifacts, tags={"mlflow.experimentKind": "custom_model_development"})
    if experiment.lifecycle_stage != "active":
        uri = client.tracking_uri
        raise TrackingError(
            f"expected the experiment {name!r} at {uri}, found it deleted. Restore it:"
            f" MLFLOW_TRACKING_URI={uri} mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return experiment.experiment_id


@contextmanager
def tracking_errors(client: MlflowClient) -> Iterator[None]:
    """Convert errors of MLflow and of the network to TrackingError."""
    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        uri = client.tracking_uri
        raise TrackingError(f"{uri}: {summarise_error(error)}; {suggest_fix(uri, error)}") from error
