"""Choose the champion among the registered versions, and record each decision with its version."""

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from ast_model.evaluation.main_metric import compute_difference
from ast_model.evaluation.predictions import Predictions
from ast_model.tracking.registry import CHAMPION, REGISTERED, find_champion
from ast_model.tracking.run_results import fetch_predictions
from ast_model.tracking.server import tracking_errors
from ast_model.tracking.tags import PROMOTION_TAG, VARIANT_TAG
from pipeline.errors import MismatchError, TrackingError


def promote_if_better(client: MlflowClient, version: ModelVersion, predictions: Predictions) -> str:
    """Make a version the champion if its main metric clearly exceeds the champion's. Return the reason.

    The comparison uses their common clips. A 95 % interval that includes 0 leaves the champion in place. The version's
    tag `champion_by` records the reason, unless the version already is the champion.
    """
    champion = find_champion(client)
    if champion is None:
        reason, is_better = "the first", True
    elif champion.version == version.version:
        return "already champion"
    else:
        reason, is_better = _compare(client, champion, predictions)
    with tracking_errors(client):
        client.set_model_version_tag(REGISTERED, version.version, PROMOTION_TAG, reason)
        if is_better:
            client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return reason


def _compare(client: MlflowClient, champion: ModelVersion, predictions: Predictions) -> tuple[str, bool]:
    """Return the result of a comparison with the champion, and whether the predictions are clearly better."""
    try:
        opponent = fetch_predictions(client, champion.run_id or "", champion.tags[VARIANT_TAG])
        change = compute_difference(predictions, opponent)
    except (MismatchError, TrackingError) as error:
        return f"not compared with version {champion.version}: {error}", False
    verdict = "clearly better" if change.low > 0 else "clearly worse" if change.high < 0 else "no clear difference"
    return f"{verdict}, {change} against version {champion.version}", change.low > 0


def promote(client: MlflowClient, version: ModelVersion) -> str:
    """Make a version the champion regardless of its metrics. Return the recorded reason."""
    current = find_champion(client)
    predictions = fetch_predictions(client, version.run_id or "", version.tags[VARIANT_TAG])
    reason = promote_if_better(client, version, predictions)
    if current is not None and current.version != version.version:
        reason = f"promoted by hand ({reason})"
        client.set_model_version_tag(REGISTERED, version.version, PROMOTION_TAG, reason)
    client.set_registered_model_alias(REGISTERED, CHAMPION, version.version)
    return reason
