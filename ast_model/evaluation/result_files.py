"""Write the files of an evaluation: predictions, a table of classes, plots and a page of clips."""

from collections.abc import Sequence
from pathlib import Path

from ast_model.evaluation.clip_page import render_clip_page
from ast_model.evaluation.plots import class_table, plot_average_precision, plot_confusion, plot_precision_recall
from ast_model.evaluation.predictions import Predictions, encode_predictions
from pipeline.snapshots.snapshot import Snapshot

PREDICTIONS_FILE = "scores.npz"
MAX_CLASSES_IN_CONFUSION = 60
"""Maximum number of classes for which a confusion matrix is readable as a picture."""


def write_evaluation(
    folder: Path,
    predictions: Predictions,
    snapshot: Snapshot,
    title: str,
    classes: Sequence[str] = (),
) -> None:
    """Write all files of an evaluation to a folder, created if needed.

    snapshot: source of the clips' spectrograms.
    classes: names of the classes in the precision-recall plot. Default: the classes with the most clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PREDICTIONS_FILE).write_bytes(encode_predictions(predictions))
    evaluation, labels = predictions.evaluation, predictions.labels
    table = class_table(evaluation, labels, predictions.num_train_clips)
    table.to_csv(folder / "classes.csv", index=False)
    plot_average_precision(table).savefig(folder / "classes.png", dpi=90)
    plot_precision_recall(evaluation, labels, classes).savefig(folder / "precision_recall.png", dpi=90)
    if evaluation.main_metric == "accuracy" and len(table) <= MAX_CLASSES_IN_CONFUSION:
        plot_confusion(evaluation, labels).savefig(folder / "confusion.png", dpi=90)
    (folder / "clips.html").write_text(render_clip_page(predictions, snapshot, title), encoding="utf-8")
