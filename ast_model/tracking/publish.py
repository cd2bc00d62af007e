"""The results of a finished training in MLflow: pictures, tables, a page of clips, and models that can be served."""

import logging
import tempfile
from pathlib import Path

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.evaluation.plots import plot_training
from ast_model.evaluation.predictions import AVERAGE, BEST, LAST, Predictions, load_predictions, predictions_name
from ast_model.evaluation.result_files import write_evaluation
from ast_model.metrics import mean_average_precision_interval
from ast_model.tracking.registry import promote_if_better
from ast_model.tracking.run import TrackedRun
from ast_model.tracking.served_model import delete_removed_models, log_served_model
from pipeline.errors import AudioTaggingError
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

CURVES = ("train/loss", "train/learning_rate", "eval/mAP")
RESULT = "\n**Result**\n"


def try_publish(tracked: TrackedRun, snapshot: Snapshot, run: str) -> None:
    """Publish; if it can't be done now, say how to do it later. The training itself is safe."""
    try:
        publish(tracked, snapshot, run)
    except AudioTaggingError as error:
        log.warning(
            "the training is done, but not all of it is in MLflow: %s. Later: python jobs/models.py publish --root %s"
            " --run %s",
            error,
            snapshot.store.root,
            run,
        )


def publish(tracked: TrackedRun, snapshot: Snapshot, run: str) -> None:
    """Bring a finished run's pictures, tables and models to MLflow. Raises TrackingError."""
    found = read_evaluations(snapshot.store, run)
    with tempfile.TemporaryDirectory() as folder:
        for variant, scores in found.items():
            write_evaluation(Path(folder) / "evaluations" / variant, scores, snapshot, f"{run}: {variant}")
        plot_training({key: tracked.series(key) for key in CURVES}).savefig(f"{folder}/curves.png", dpi=90)
        tracked.log_files(Path(folder), "")
    lines = [RESULT]
    for variant, scores in found.items():
        lines.append(f"- {variant} (epoch {scores.epoch}): {describe_scores(scores)}")
        if checkpoint := find_checkpoint(snapshot.store, run, variant):
            version = log_served_model(tracked, variant, snapshot.store, checkpoint, scores)
            decision = promote_if_better(tracked.client, version, scores)
            lines[-1] += f"; version {version.version} in the registry, champion? {decision}"
    delete_removed_models(tracked, snapshot.store, run)
    tracked.describe(tracked.description.split(RESULT)[0] + "\n".join(lines))


def read_evaluations(store: Store, run: str) -> dict[str, Predictions]:
    """Return a run's evaluations; the last one only if it is not the best."""
    variants = [variant for variant in (BEST, AVERAGE, LAST) if store.exists(predictions_name(run, variant))]
    found = {variant: load_predictions(store, predictions_name(run, variant)) for variant in variants}
    if LAST in found and BEST in found and found[LAST].epoch == found[BEST].epoch:
        del found[LAST]
    return found


def describe_scores(scores: Predictions) -> str:
    low, high = mean_average_precision_interval(scores.scores, scores.targets)
    metrics = scores.evaluation.metrics
    return (
        f"mAP **{metrics.mAP:.4f}** [{low:.4f}, {high:.4f}], AUC {metrics.auc:.4f}, d′ {metrics.d_prime:.3f} on"
        f" {len(scores.keys)} clips"
    )


def find_checkpoint(store: Store, run: str, variant: str) -> str | None:
    """Return the folder of the checkpoint that an evaluation is of, if it becomes a model of its own."""
    if variant == BEST:
        best = best_checkpoint(store, f"runs/{run}/checkpoints")
        return best[0] if best else None
    if variant == AVERAGE:
        return next(reversed(list_checkpoints(store, f"runs/{run}/average")), None)
    return None
