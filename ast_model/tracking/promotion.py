"""Choose the champion among the registered versions, and record each decision with its version."""

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from ast_model.evaluation.map_difference import compute_map_difference
from ast_model.evaluation.predictions import Predictions
from ast_model.tracking.registry import CHAMPION, REGISTERED, find_champion
from ast_model.tracking.run_results import fetch_predictions
from ast_model.tracking.server import tracking_errors
from ast_model.tracking.tags import PROMOTION_TAG, VARIANT_TAG
from pipeline.errors import MismatchError, TrackingError


def promote_if_better(client: MlflowClient, version: ModelVersion, predictions: Predictions) -> str:
    """Make a version the champion if its mAP exceeds the champion's on their common clips. Return the reason.

    The version's tag `champion_by` records the reason, unless the version already is the champion.
    """
    current = find_champion(client)
    if current is None:
        reason, is_better = "the first", True
    elif current.version == version.version:
        return "already champion"
    else:
        try:
            opponent = fetch_predictions(client, current.run_id or "", current.tags[VARIANT_TAG])
            change = compute_map_difference(predictions, opponent)
            reason, is_better = f"{change} against version {current.version}", change.value > 0
        except (MismatchError, TrackingError) as error:
            reason, is_better = f"not compared with version {current.version}: {error}", False
    with tracking_errors(client):
        client.set_model_version_tag(REGISTERED, version.version, PROMOTION_TAG, reason)
        if is_better:
            client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return reason


def promote(client: MlflowClient, version: ModelVersion) -> str:
    """Make a version the champion regardless of its mAP. Return the recorded reason."""
    current = find_champion(client)
    predictions = fetch_predictions(client, version.run_id or "", version.tags[VARIANT_TAG])
    reason = promote_if_better(client, version, predictions)
    if current is not None and current.version != version.version:
        reason = f"promoted by hand ({reason})"
        client.set_model_version_tag(REGISTERED, version.version, PROMOTION_TAG, reason)
    client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return reason
