"""Lineage: from a model to its run, snapshot and preprocessing, and from a snapshot to its models."""

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from ast_model.tracking.registry import CHAMPION, champion, versions
from ast_model.tracking.server import EXPERIMENT, PREPROCESSING, connect, tracking_errors
from ast_model.tracking.tags import EPOCH_TAG, MODEL_ID_TAG, PROMOTION_TAG, ROOT_TAG, RUN_TAG, SNAPSHOT_TAG, VARIANT_TAG
from pipeline.store.storage import Store


def describe_versions(client: MlflowClient, snapshot_id: str = "") -> list[dict[str, str]]:
    """Return a row per version with where it comes from: run, snapshot, and the runs that made the snapshot."""
    with tracking_errors(client):
        found = [each for each in versions(client) if snapshot_id in ("", each.tags.get(SNAPSHOT_TAG))]
        best = champion(client)
        return [_describe_version(client, each, best) for each in found]


def _describe_version(client: MlflowClient, version: ModelVersion, best: ModelVersion | None) -> dict[str, str]:
    tags, model = version.tags, client.get_logged_model(version.tags[MODEL_ID_TAG])
    figures = {metric.key.split("/")[-1]: metric.value for metric in model.metrics or []}
    run = client.get_run(version.run_id or "")
    has_interval = {"mAP", "mAP_low"} <= figures.keys()
    is_best = best is not None and best.version == version.version
    return {
        "version": f"{version.version}{is_best * f' {CHAMPION}'}",
        "checkpoint": f"{tags[VARIANT_TAG]}, epoch {tags[EPOCH_TAG]}",
        "mAP": "{mAP:.4f} [{mAP_low:.4f}, {mAP_high:.4f}]".format(**figures) if has_interval else "?",
        "run": run.data.tags.get(RUN_TAG, run.info.run_name or ""),
        "snapshot": tags.get(SNAPSHOT_TAG, ""),
        "made by": ", ".join(preprocessing_runs(client, tags.get(SNAPSHOT_TAG, ""))) or "none here",
        "champion by": tags.get(PROMOTION_TAG, ""),
    }


def preprocessing_runs(client: MlflowClient, snapshot_id: str) -> list[str]:
    """Return the names of the runs that made a snapshot, or what it is a selection of.

    The first that ended with it, and earlier ones of its store that wrote clips.
    """
    experiment, snapshot_id = client.get_experiment_by_name(PREPROCESSING), snapshot_id.partition("-")[0]
    if experiment is None:
        return []
    runs = list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"], max_results=5000))
    found = [run for run in runs if run.data.tags.get(SNAPSHOT_TAG) == snapshot_id]
    if not found:
        return []
    last = runs.index(found[0])
    root = found[0].data.tags.get(ROOT_TAG)
    earlier = [run for run in runs[:last] if run.data.tags.get(ROOT_TAG) == root and run.data.metrics.get("written")]
    return [run.info.run_name or run.info.run_id for run in [*earlier, found[0]]]


def snapshots_in_use(store: Store) -> set[str]:
    """Return the snapshots that tracked runs name, by themselves or by a selection, whatever their state."""
    client = connect(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found: set[str] = set()
    token: str | None = ""
    while experiment is not None and token is not None:
        runs = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token or None)
        found |= {run.data.tags[SNAPSHOT_TAG].partition("-")[0] for run in runs if SNAPSHOT_TAG in run.data.tags}
        token = runs.token or None
    return found
