"""Pictures of a training and of an evaluation. Each is a figure that belongs to nobody: no state of pyplot."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure

from ast_model.evaluation.calibration import expected_calibration_error, reliability
from ast_model.evaluation.evaluate import Evaluation
from pipeline.labels import Labels

MAX_CLASSES_IN_PLOT = 60
NUM_CURVES = 8
NUM_LANES = 5
"""Classes drawn below a recording's spectrogram."""
Series = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""


def class_table(evaluation: Evaluation, labels: Labels, num_train_clips: np.ndarray) -> pd.DataFrame:
    """Return a row per class: average precision, AUC, clips in evaluation and training."""
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
    """Draw average precision per class, best first, beside the number of training clips."""
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
    """Draw how each class's average precision changes from one run to another; the index names the classes."""
    shown = _both_ends(changes.dropna().sort_values(ascending=False).to_frame("change"))["change"]
    figure, axes = _bars(len(shown))
    axes.barh(np.arange(len(shown)), shown, color=np.where(shown >= 0, "tab:green", "tab:red"))
    _name_bars(axes, list(shown.index))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("change of average precision")
    axes.set_title(f"{first} → {second}: {(changes > 0).sum()} classes gain, {(changes < 0).sum()} lose", size=9)
    return figure


def plot_precision_recall(evaluation: Evaluation, labels: Labels, classes: Sequence[str] = ()) -> Figure:
    """Draw precision against recall of some classes; unless named, those with the most clips in the evaluation."""
    from sklearn.metrics import precision_recall_curve  # only here: it takes a second, and a training does without

    counts, names = evaluation.targets.sum(axis=0), labels.names
    chosen = [names.index(name) for name in classes] or list(np.argsort(-counts, kind="stable")[:NUM_CURVES])
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for index in chosen:
        if counts[index]:
            precision, recall, _ = precision_recall_curve(evaluation.targets[:, index], evaluation.scores[:, index])
            axes.step(recall, precision, where="post", label=f"{_plain(names[index])} ({counts[index]})")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.legend(fontsize=8, title="class (clips in the evaluation)", title_fontsize=8)
    return figure


def plot_confusion(evaluation: Evaluation, labels: Labels) -> Figure:
    """Draw how often each class (row) is taken for each (column), as a share of the row. Clips have one class each."""
    num_classes = len(labels)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (evaluation.targets.argmax(axis=1), evaluation.scores.argmax(axis=1)), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = 3 + 0.2 * num_classes
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_plain(name) for name in labels.names]
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=7)
    axes.set_yticks(range(num_classes), names, fontsize=7)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def plot_reliability(before_NC: np.ndarray, after_NC: np.ndarray, targets_NC: np.ndarray) -> Figure:
    """Draw the share of positives against the score, before and after."""
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
    """Draw how a training went: loss and learning rate against steps, what was measured against epochs."""
    panels = [
        ("train/loss", "loss", "step"),
        ("train/learning_rate", "learning rate", "step"),
        ("eval/mAP", "mAP", "epoch"),
    ]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (name, label, unit) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        steps, values = series.get(name, ((), ()))
        axes.plot(steps, values, marker="." if len(values) < 50 else "")
        axes.set(xlabel=unit, ylabel=label)
        axes.grid(alpha=0.3)
    return figure


def plot_tags(title: str, fbank_TM: np.ndarray, length_s: float, tags: pd.DataFrame) -> Figure:
    """Draw the spectrogram of a recording, and below it where its strongest classes are, darker for a higher score."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    low, high = np.percentile(fbank_TM, [5, 99])
    above.imshow(
        fbank_TM.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=(0, length_s, 0, 128)
    )
    above.set(ylabel="mel bin", title=_plain(title))
    labels = list(tags.groupby("label", sort=False)["score"].max().nlargest(NUM_LANES).index)
    for lane, label in enumerate(labels):
        rows = tags[tags["label"] == label]
        # Windows overlap: a stretch has the colour of the last one that begins in it.
        ends_s = np.minimum(rows["end_s"], rows["start_s"].shift(-1, fill_value=np.inf))
        colours = colormaps["Blues"](0.1 + 0.9 * rows["score"].to_numpy())
        below.broken_barh(
            list(zip(rows["start_s"], ends_s - rows["start_s"], strict=True)), (lane - 0.4, 0.8), color=colours
        )
    below.set_yticks(range(len(labels)), [_plain(label) for label in labels], fontsize=8)
    below.set(xlim=(0, length_s), ylim=(len(labels) - 0.5, -0.5), xlabel="seconds")
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
    axes.set_yticks(np.arange(len(names)), [_plain(name) for name in names], fontsize=8)
    axes.invert_yaxis()


def _plain(text: str) -> str:
    """Keep matplotlib from reading a dollar sign as mathematics."""
    return text.replace("$", r"\$")
