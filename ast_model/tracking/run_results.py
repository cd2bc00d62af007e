"""Look up runs by name, and download the predictions of their evaluations."""

import tempfile
from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ast_model.evaluation.predictions import AVERAGE, BEST, LAST, Predictions, parse_predictions
from ast_model.evaluation.result_files import PREDICTIONS_FILE
from ast_model.tracking.server import EXPERIMENT, tracking_errors
from ast_model.tracking.tags import RUN_TAG
from pipeline.errors import TrackingError
from pipeline.store.layout import EVALUATIONS

BASELINE = "baseline/"
"""Prefix of the names of a run's baseline metrics."""


def find_run(client: MlflowClient, text: str) -> Run:
    """Find a training run by its MLflow id, its name or its folder. Raises TrackingError unless exactly one matches."""
    with tracking_errors(client):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = list(client.search_runs([experiment.experiment_id], max_results=5000)) if experiment else []
    aliases = [(run, (run.info.run_id, run.info.run_name, run.data.tags.get(RUN_TAG))) for run in runs]
    found = [run for run, names in aliases if text in names]
    if len(found) != 1:
        newest = "; ".join(str(names[2] or names[1]) for _, names in aliases[:10]) or "no runs"
        raise TrackingError(
            f"expected one run of the experiment {EXPERIMENT!r} named {text!r}, found {len(found)}. The newest are:"
            f" {newest}; name a run by its id, its name or its folder"
        )
    return found[0]


def fetch_predictions(client: MlflowClient, run_id: str, variant: str) -> Predictions:
    """Download the predictions of a run's evaluation. Raises TrackingError if the run has none."""
    name = f"{EVALUATIONS}/{variant}/{PREDICTIONS_FILE}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(client.download_artifacts(run_id, name, folder)).read_bytes()
    except (MlflowException, OSError) as error:
        raise TrackingError(f"expected {name} among the artifacts of run {run_id}, found none ({error})") from error
    return parse_predictions(data, name)


def fetch_best_predictions(client: MlflowClient, run: Run) -> tuple[str, Predictions] | None:
    """Return the variant and the predictions of a run's best evaluation by the main metric, or None."""
    found = []
    for variant in (BEST, AVERAGE, LAST):
        try:
            found.append((variant, fetch_predictions(client, run.info.run_id, variant)))
        except TrackingError:
            continue  # not every run has all three
    return max(found, key=lambda each: each[1].evaluation.main_value, default=None)


def baseline_metrics(run: Run) -> dict[str, float]:
    """Return the metrics of a run's baseline by name; empty if the run has none."""
    metrics = run.data.metrics
    return {name.removeprefix(BASELINE): value for name, value in metrics.items() if name.startswith(BASELINE)}
