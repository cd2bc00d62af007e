"""The registry: versions of the model, how much better one is than another, and the champion among them."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ast_model.evaluation.predictions import Predictions, parse_predictions, select_common_clips
from ast_model.evaluation.result_files import PREDICTIONS_FILE
from ast_model.metrics import mean_average_precision_change
from ast_model.tracking.server import tracking_errors
from ast_model.tracking.tags import MODEL_ID_TAG, PROMOTION_TAG, VARIANT_TAG
from pipeline.errors import MismatchError, TrackingError

REGISTERED = "audioset-ast"
CHAMPION = "champion"
"""The alias that we set; MLflow itself keeps `latest` for the newest version."""
NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a model that is not registered, and for an alias that is not set."""


@dataclass(frozen=True)
class Difference:
    """mAP of one model less that of another, on the clips that both were measured on."""

    value: float
    low: float
    high: float
    num_clips: int

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}] on {self.num_clips} clips"


def register(client: MlflowClient, run_id: str, model: LoggedModel, tags: Mapping[str, str]) -> ModelVersion:
    for version in versions(client):
        if version.tags.get(MODEL_ID_TAG) == model.model_id:
            return version
    try:
        client.create_registered_model(REGISTERED, description="AST models; `champion` is the best one")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Named by its place: an address such as models:/ID would be looked up on whichever server is MLflow's default.
    source, all_tags = model.artifact_location, {**tags, MODEL_ID_TAG: model.model_id}
    return client.create_model_version(REGISTERED, source, run_id, all_tags, model_id=model.model_id)


def versions(client: MlflowClient) -> list[ModelVersion]:
    """Return all versions in the registry, newest first."""
    found = client.search_model_versions(f"name = '{REGISTERED}'", max_results=1000)
    return sorted(found, key=lambda version: -int(version.version))


def find_version(client: MlflowClient, version: str) -> ModelVersion:
    """Return a version by number or alias. Raises TrackingError."""
    with tracking_errors(client):
        try:
            if version.isdecimal():
                return client.get_model_version(REGISTERED, version)
            return client.get_model_version_by_alias(REGISTERED, version)
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            known = ", ".join(str(found.version) for found in versions(client)[:20]) or "none at all"
            raise TrackingError(
                f"expected a version or alias of the model {REGISTERED}, found {version!r}; there are: {known}"
            ) from error


def champion(client: MlflowClient) -> ModelVersion | None:
    """Return the champion; None if there is none yet. Raises TrackingError if that can't be known."""
    with tracking_errors(client):
        try:
            return client.get_model_version_by_alias(REGISTERED, CHAMPION)
        except MlflowException as error:
            if error.error_code not in NOT_THERE:
                raise
            return None


def fetch_predictions(client: MlflowClient, run_id: str, variant: str) -> Predictions:
    """Fetch the scores of a run's evaluation. Raises TrackingError if it has none."""
    address = f"evaluations/{variant}/{PREDICTIONS_FILE}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(client.download_artifacts(run_id, address, folder)).read_bytes()
    except (MlflowException, OSError) as error:
        raise TrackingError(f"expected {address} among the artifacts of run {run_id}, found none ({error})") from error
    return parse_predictions(data, address)


def difference(new: Predictions, old: Predictions) -> Difference:
    """Compare two evaluations on the clips that both have. Raises MismatchError."""
    new, old = select_common_clips(new, old)
    change = mean_average_precision_change(old.scores, new.scores, old.targets)
    return Difference(*change, num_clips=len(new.keys))


def promote_if_better(client: MlflowClient, version: ModelVersion, scores: Predictions) -> str:
    """Make a version the champion if it is better than the one there is; return what was decided, which is noted."""
    before = champion(client)
    if before is None:
        decision, is_better = "the first", True
    elif before.version == version.version:
        return "is the champion already"
    else:
        try:
            change = difference(scores, fetch_predictions(client, before.run_id or "", before.tags[VARIANT_TAG]))
            decision, is_better = f"{change} against version {before.version}", change.value > 0
        except (MismatchError, TrackingError) as error:
            decision, is_better = f"not compared with version {before.version}: {error}", False
    with tracking_errors(client):
        client.set_model_version_tag(REGISTERED, version.version, PROMOTION_TAG, decision)
        if is_better:
            client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return decision


def promote(client: MlflowClient, version: ModelVersion) -> str:
    """Make a version the champion by hand; return what is noted of it."""
    before = champion(client)
    decision = promote_if_better(
        client, version, fetch_predictions(client, version.run_id or "", version.tags[VARIANT_TAG])
    )
    if before is not None and before.version != version.version:
        decision = f"promoted by hand ({decision})"
        client.set_model_version_tag(REGISTERED, version.version, PROMOTION_TAG, decision)
    client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return decision


def download(client: MlflowClient, version: ModelVersion, folder: Path) -> None:
    """Copy a version's files into a new folder. Raises TrackingError."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise TrackingError(f"expected {folder} to be empty or absent, found something there; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tracking_errors(client), tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        model = client.get_logged_model(version.tags[MODEL_ID_TAG])
        found = download_artifacts(model.artifact_location, dst_path=scratch, tracking_uri=client.tracking_uri)
        Path(found).rename(folder)
