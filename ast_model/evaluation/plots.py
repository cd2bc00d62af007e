"""Plot training curves and evaluations. Uses matplotlib's object interface instead of pyplot's global state."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ast_model.evaluation.calibration import expected_calibration_error, reliability
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.plot_text import fit_text, font_families, text_width
from pipeline.labels import Labels

MAX_CLASSES_IN_PLOT = 60
NUM_CURVES = 8
MAX_CONFUSION_WIDTH = 40
"""Maximum width of a class name in a confusion matrix, in Latin letters."""
INCHES_PER_COLUMN = 0.07
"""Width of a Latin letter in the labels of a confusion matrix, in inches."""
Series = tuple[Sequence[float], Sequence[float]]
"""Steps and values of a curve."""


def class_table(evaluation: Evaluation, labels: Labels, num_train_clips: np.ndarray) -> pd.DataFrame:
    """Return a table with a row per class: average precision, AUC, and numbers of clips."""
    return pd.DataFrame(
        {
            "mid": labels.mids,
            "name": labels.names,
            "average_precision": evaluation.metrics.average_precision,
            "auc": evaluation.metrics.auc_per_class,
            "num_eval_clips": evaluation.targets.sum(axis=0),
            "num_train_clips": num_train_clips,
        }
    )


def plot_average_precision(table: pd.DataFrame) -> Figure:
    """Plot the average precision per class, best first, with the number of training clips."""
    ranked = table.dropna(subset="average_precision").sort_values("average_precision", ascending=False)
    shown = _both_ends(ranked)
    figure, axes = _bars(len(shown))
    axes.barh(np.arange(len(shown)), shown["average_precision"], color="tab:blue")
    _name_bars(axes, [f"{row['name']} ({row.num_train_clips})" for _, row in shown.iterrows()])
    axes.set_xlim(0, 1)
    axes.set_xlabel("average precision (in brackets: training clips)")
    axes.set_title(f"{len(shown)} of {len(table)} classes, mean {table['average_precision'].mean():.3f}")
    return figure


def plot_changes(changes: pd.Series, first: str, second: str) -> Figure:
    """Plot the change in average precision of each class between two runs. The index of `changes` names the classes."""
    shown = _both_ends(changes.dropna().sort_values(ascending=False).to_frame("change"))["change"]
    figure, axes = _bars(len(shown))
    axes.barh(np.arange(len(shown)), shown, color=np.where(shown >= 0, "tab:green", "tab:red"))
    _name_bars(axes, list(shown.index))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("change of average precision")
    title = f"{fit_text(first)} → {fit_text(second)}: {(changes > 0).sum()} classes gain, {(changes < 0).sum()} lose"
    axes.set_title(title, size=9, fontfamily=font_families([title]))
    return figure


def plot_precision_recall(evaluation: Evaluation, labels: Labels, classes: Sequence[str] = ()) -> Figure:
    """Plot precision against recall for some classes. Default: the classes with the most evaluated clips."""
    from sklearn.metrics import precision_recall_curve  # imported late, because it takes a second that training avoids

    counts, names = evaluation.targets.sum(axis=0), labels.names
    chosen = [names.index(name) for name in classes] or list(np.argsort(-counts, kind="stable")[:NUM_CURVES])
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes, shown = figure.subplots(), list[str]()
    for index in chosen:
        if counts[index]:
            precision, recall, _ = precision_recall_curve(evaluation.targets[:, index], evaluation.scores[:, index])
            axes.step(recall, precision, where="post")
            shown.append(f"{fit_text(names[index])} ({counts[index]})")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    # Pass labels explicitly, because matplotlib hides lines with labels that start with an underscore.
    prop = {"size": 8, "family": font_families(shown)}
    axes.legend(axes.lines, shown, prop=prop, title="class (clips in the evaluation)", title_fontsize=8)
    return figure


def plot_confusion(evaluation: Evaluation, labels: Labels) -> Figure:
    """Plot the confusion matrix of clips with one class each. Rows are true classes and sum to 1."""
    num_classes = len(labels)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (evaluation.targets.argmax(axis=1), evaluation.scores.argmax(axis=1)), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    names = [fit_text(name, MAX_CONFUSION_WIDTH) for name in labels.names]
    side = 3 + 0.2 * num_classes + INCHES_PER_COLUMN * max(map(text_width, names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    family = font_families(names)
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=7, fontfamily=family)
    axes.set_yticks(range(num_classes), names, fontsize=7, fontfamily=family)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def plot_reliability(before_NC: np.ndarray, after_NC: np.ndarray, targets_NC: np.ndarray) -> Figure:
    """Plot the share of positives against the score, before and after calibration."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, scores_NC in (("before", before_NC), ("after", after_NC)):
        mean_scores, shares, _ = reliability(scores_NC, targets_NC)
        error = expected_calibration_error(scores_NC, targets_NC)
        axes.plot(mean_scores, shares, marker="o", label=f"{name}: calibration error {error:.4f}")
    axes.set_xlabel("score")
    axes.set_ylabel("share of clips that have the class")
    axes.legend(loc="upper left")
    return figure


def plot_training(series: Mapping[str, Series]) -> Figure:
    """Plot training curves by metric name: over steps, or over epochs for metrics of evaluations."""
    figure = Figure(figsize=(4 * len(series), 3.2), layout="constrained")
    panels = figure.subplots(1, len(series), squeeze=False)[0]
    for axes, (name, (steps, values)) in zip(panels, series.items(), strict=True):
        axes.plot(steps, values, marker="." if len(values) < 50 else "")
        label = name.rpartition("/")[2].replace("_", " ")
        axes.set(xlabel="epoch" if name.startswith("eval/") else "step", ylabel=label)
        axes.grid(alpha=0.3)
    return figure


def _both_ends(ranked: pd.DataFrame) -> pd.DataFrame:
    if len(ranked) <= MAX_CLASSES_IN_PLOT:
        return ranked
    half = MAX_CLASSES_IN_PLOT // 2
    return pd.concat([ranked.head(half), ranked.tail(half)])


def _bars(num_bars: int):
    figure = Figure(figsize=(8, 1.2 + 0.25 * num_bars), layout="constrained")
    return figure, figure.subplots()


def _name_bars(axes, names: Sequence[str]) -> None:
    names = [fit_text(name) for name in names]
    axes.set_yticks(np.arange(len(names)), names, fontsize=8, fontfamily=font_families(names))
    axes.invert_yaxis()
