"""Trace the lineage of each model version: its training run, snapshot and preprocessing runs."""

from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from ast_model.evaluation.main_metric import MetricEstimate
from ast_model.tracking.registry import CHAMPION, find_champion, list_versions
from ast_model.tracking.server import EXPERIMENT, PREPROCESSING, connect, tracking_errors
from ast_model.tracking.tags import EPOCH_TAG, MODEL_ID_TAG, PROMOTION_TAG, ROOT_TAG, RUN_TAG, SNAPSHOT_TAG, VARIANT_TAG
from pipeline.store.storage import Store


def describe_versions(client: MlflowClient, snapshot_id: str = "") -> list[dict[str, str]]:
    """Return a table row per version: main metric, run, snapshot, and the preprocessing runs that built the snapshot.

    snapshot_id: list only the versions trained on this snapshot, if given.
    """
    with tracking_errors(client):
        found = [each for each in list_versions(client) if snapshot_id in ("", each.tags.get(SNAPSHOT_TAG))]
        champion = find_champion(client)
        return [_describe_version(client, each, champion) for each in found]


def _describe_version(client: MlflowClient, version: ModelVersion, champion: ModelVersion | None) -> dict[str, str]:
    tags, model = version.tags, client.get_logged_model(version.tags[MODEL_ID_TAG])
    metrics = {metric.key.split("/")[-1]: metric.value for metric in model.metrics or []}
    run = client.get_run(version.run_id or "")
    is_champion = champion is not None and champion.version == version.version
    return {
        "version": f"{version.version}{is_champion * f' {CHAMPION}'}",
        "checkpoint": f"{tags[VARIANT_TAG]}, epoch {tags[EPOCH_TAG]}",
        "result": _format_main_metric(metrics),
        "run": run.data.tags.get(RUN_TAG, run.info.run_name or ""),
        "snapshot": tags.get(SNAPSHOT_TAG, ""),
        "made by": ", ".join(preprocessing_runs(client, tags.get(SNAPSHOT_TAG, ""))) or "unknown",
        "champion by": tags.get(PROMOTION_TAG, ""),
    }


def _format_main_metric(metrics: dict[str, float]) -> str:
    """Format the main metric of a version, the only metric with an interval."""
    name = next((key.removesuffix("_low") for key in metrics if key.endswith("_low")), "")
    if name not in metrics:
        return "?"
    return str(MetricEstimate(name, metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]))


def preprocessing_runs(client: MlflowClient, snapshot_id: str) -> list[str]:
    """Return the names of the preprocessing runs that built a snapshot, oldest first.

    These are the first run that published the snapshot and the earlier runs that wrote clips to the same store. For a
    selection, return the runs of the snapshot that it selects from.
    """
    experiment, snapshot_id = client.get_experiment_by_name(PREPROCESSING), snapshot_id.partition("-")[0]
    if experiment is None:
        return []
    runs = list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"], max_results=5000))
    found = [run for run in runs if run.data.tags.get(SNAPSHOT_TAG) == snapshot_id]
    if not found:
        return []
    publisher = found[0]
    root = publisher.data.tags.get(ROOT_TAG)
    earlier = [
        run
        for run in runs[: runs.index(publisher)]
        if run.data.tags.get(ROOT_TAG) == root and run.data.metrics.get("written")
    ]
    return [run.info.run_name or run.info.run_id for run in [*earlier, publisher]]


def snapshots_in_use(store: Store) -> set[str]:
    """Return the ids of all snapshots that training runs of any status refer to, directly or through a selection."""
    client = connect(store)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found: set[str] = set()
    token: str | None = ""
    while experiment is not None and token is not None:
        runs = client.search_runs([experiment.experiment_id], max_results=1000, page_token=token or None)
        found |= {run.data.tags[SNAPSHOT_TAG].partition("-")[0] for run in runs if SNAPSHOT_TAG in run.data.tags}
        token = runs.token or None
    return found
