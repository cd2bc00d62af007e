"""Publish plots, tables, a page of clips and servable models of a finished training run to MLflow."""

import logging
import tempfile
from pathlib import Path

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.checkpoints.checkpoint import DESCRIPTION, list_checkpoints
from ast_model.evaluation.main_metric import estimate_main_metric
from ast_model.evaluation.plots import plot_training
from ast_model.evaluation.predictions import AVERAGE, BEST, LAST, Predictions, load_predictions, predictions_name
from ast_model.evaluation.result_files import write_evaluation
from ast_model.tracking.promotion import promote_if_better
from ast_model.tracking.run import TrackedRun
from ast_model.tracking.served_model import log_served_model
from ast_model.tracking.server import tracking_errors
from ast_model.tracking.tags import VARIANT_TAG
from pipeline.errors import AudioTaggingError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.layout import EVALUATIONS, RunFiles
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

STEP_CURVES = ("train/loss", "train/learning_rate")
RESULT = "\n**Result**\n"
"""Heading in the run's description; a second publication replaces the text after it."""


def try_publish(tracked: TrackedRun, snapshot: Snapshot, run: str) -> None:
    """Publish, or log the command that publishes later. The training's results are safe in the store either way."""
    try:
        publish(tracked, snapshot, run)
    except AudioTaggingError as error:
        log.warning(
            "the training is finished, but not all results are in MLflow: %s. Publish them later with: python"
            " jobs/models.py publish --root %s --run %s",
            error,
            snapshot.store.root,
            run,
        )


def publish(tracked: TrackedRun, snapshot: Snapshot, run: str) -> None:
    """Upload plots and tables of a finished run, and register its best and its averaged weights as versions.

    Safe to repeat: existing models and versions remain. Raises TrackingError.
    """
    evaluations = load_evaluations(snapshot.store, run)
    with tempfile.TemporaryDirectory() as folder:
        for variant, predictions in evaluations.items():
            write_evaluation(Path(folder) / EVALUATIONS / variant, predictions, snapshot, f"{run}: {variant}")
        main_metrics = {f"eval/{predictions.evaluation.main_metric}" for predictions in evaluations.values()}
        curves = {key: tracked.metric_history(key) for key in (*STEP_CURVES, *main_metrics)}
        plot_training(curves).savefig(f"{folder}/curves.png", dpi=90)
        tracked.log_files(Path(folder), "")
    lines = [RESULT]
    for variant, predictions in evaluations.items():
        lines.append(f"- {variant} (epoch {predictions.epoch}): {format_metrics(predictions)}")
        if checkpoint := find_checkpoint(snapshot.store, run, variant):
            version = log_served_model(tracked, variant, snapshot.store, checkpoint, predictions)
            reason = promote_if_better(tracked.client, version, predictions)
            lines[-1] += f"; version {version.version} in the registry, champion: {reason}"
    delete_removed_models(tracked, snapshot.store, run)
    tracked.describe(tracked.description.split(RESULT)[0] + "\n".join(lines))


def load_evaluations(store: Store, run: str) -> dict[str, Predictions]:
    """Load a run's predictions by variant. Skips the last epoch if it is also the best."""
    variants = [variant for variant in (BEST, AVERAGE, LAST) if store.exists(predictions_name(run, variant))]
    found = {variant: load_predictions(store, predictions_name(run, variant)) for variant in variants}
    if LAST in found and BEST in found and found[LAST].epoch == found[BEST].epoch:
        del found[LAST]
    return found


def format_metrics(predictions: Predictions) -> str:
    """Format the main metric with its 95 % interval and the other metrics as Markdown."""
    main = estimate_main_metric(predictions.evaluation)
    others = [
        f"{name} {value:.4f}" for name, value in predictions.evaluation.metrics_by_name.items() if name != main.name
    ]
    return ", ".join([f"**{main}**", *others]) + f" on {predictions.clips_text}"


def find_checkpoint(store: Store, run: str, variant: str) -> str | None:
    """Return the folder of the evaluated checkpoint. None for the last epoch, which is not registered."""
    if variant == BEST:
        best = best_checkpoint(store, RunFiles(run).checkpoints)
        return best[0] if best else None
    if variant == AVERAGE:
        return next(reversed(list_checkpoints(store, RunFiles(run).average)), None)
    return None


def delete_removed_models(tracked: TrackedRun, store: Store, run: str) -> None:
    """Delete the logged models of deleted checkpoints, except served models, which have their own copy."""
    client = tracked.client
    with tracking_errors(client):
        experiment_id = client.get_run(tracked.run_id).info.experiment_id
        for model in client.search_logged_models([experiment_id], f"source_run_id = '{tracked.run_id}'"):
            description = f"{RunFiles(run).checkpoints}/{model.name}/{DESCRIPTION}"
            if model.name != AVERAGE and VARIANT_TAG not in model.tags and not store.exists(description):
                client.delete_logged_model(model.model_id)
