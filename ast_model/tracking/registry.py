"""Register, find and download versions of the model in MLflow's registry."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ast_model.tracking.server import tracking_errors
from ast_model.tracking.tags import MODEL_ID_TAG
from pipeline.errors import TrackingError

REGISTERED = "audioset-ast"
"""Name of the registered model."""
CHAMPION = "champion"
"""Alias of the best version. MLflow itself maintains the alias `latest`."""
NOT_FOUND_CODES = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for a model that is not registered and for an alias that is not set."""


def register(client: MlflowClient, run_id: str, model: LoggedModel, tags: Mapping[str, str]) -> ModelVersion:
    """Register a logged model as a new version, or return its existing version."""
    for version in list_versions(client):
        if version.tags.get(MODEL_ID_TAG) == model.model_id:
            return version
    try:
        client.create_registered_model(REGISTERED, description="AST models; `champion` is the best one")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # The artifact location, because MLflow resolves a models:/ address on its default server, which may differ.
    source, all_tags = model.artifact_location, {**tags, MODEL_ID_TAG: model.model_id}
    return client.create_model_version(REGISTERED, source, run_id, all_tags, model_id=model.model_id)


def list_versions(client: MlflowClient) -> list[ModelVersion]:
    """Return all registered versions, newest first."""
    found = client.search_model_versions(f"name = '{REGISTERED}'", max_results=1000)
    return sorted(found, key=lambda version: -int(version.version))


def find_version(client: MlflowClient, version: str) -> ModelVersion:
    """Find a version by its number or alias. Raises TrackingError if it does not exist."""
    with tracking_errors(client):
        try:
            if version.isdecimal():
                return client.get_model_version(REGISTERED, version)
            return client.get_model_version_by_alias(REGISTERED, version)
        except MlflowException as error:
            if error.error_code not in NOT_FOUND_CODES:
                raise
            known = ", ".join(str(found.version) for found in list_versions(client)[:20]) or "none"
            raise TrackingError(
                f"expected a version or alias of the model {REGISTERED}, found {version!r}; existing versions: {known}"
            ) from error


def find_champion(client: MlflowClient) -> ModelVersion | None:
    """Return the champion, or None if no version has that alias. Raises TrackingError if the registry fails."""
    with tracking_errors(client):
        try:
            return client.get_model_version_by_alias(REGISTERED, CHAMPION)
        except MlflowException as error:
            if error.error_code not in NOT_FOUND_CODES:
                raise
            return None


def download(client: MlflowClient, version: ModelVersion, folder: Path) -> None:
    """Download the files of a version to a new folder. Raises TrackingError if the folder is not empty."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise TrackingError(f"expected {folder} to be empty or absent, found files; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tracking_errors(client), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        model = client.get_logged_model(version.tags[MODEL_ID_TAG])
        found = download_artifacts(model.artifact_location, dst_path=scratch, tracking_uri=client.tracking_uri)
        Path(found).rename(folder)
