"""Score a checkpoint, or an ensemble of them, on a split of a snapshot.

python jobs/evaluate.py --root data/demo --checkpoints data/demo/runs/RUN/average
python jobs/evaluate.py --root data/audioset --checkpoints MIT/ast-finetuned-audioset-{10-10-0.4593,16-16-0.442} \
    --bootstrap 200
"""

import difflib
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import tyro

from ast_model.evaluation.ensemble import score_each
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.plots import class_table, plot_average_precision, plot_precision_recall
from ast_model.metrics import mean_average_precision_interval, tagging_metrics
from jobs.launch.cli import resolve_root, run_job
from pipeline.errors import ConfigError
from pipeline.labels import Labels
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint, load_snapshot
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

MAX_CLASSES_IN_CONFUSION = 60


@dataclass(frozen=True)
class EvaluateConfig:
    """What to score, on what."""

    checkpoints: tuple[str, ...]
    """Folders, files or hub names, of any strides and lengths. Several are an ensemble: the mean of their scores."""
    root: str = "data/demo"
    """Folder or s3:// address of the store."""
    snapshot: str = ""
    """Snapshot to take clips from; the latest unless named."""
    split: str = "eval"
    """Split to score."""
    output: str = ""
    """Folder for scores, tables and plots; a new one in ROOT/evaluations, or ./evaluations for s3://, unless set."""
    classes: tuple[str, ...] = ()
    """Classes to draw precision against recall of, by name; those with the most clips unless named."""
    bootstrap: int = 0
    """Resamples for the 95 % interval of mAP; 0 for none."""
    batch_size: int = 16
    """Clips scored at a time."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.bootstrap < 0:
            raise ConfigError(
                f"batch_size must be at least 1 and bootstrap not negative, found {self.batch_size}, {self.bootstrap}"
            )


def score() -> EvaluateConfig:
    """Checkpoints → metrics, scores, a table per class and plots."""
    return EvaluateConfig(checkpoints=tyro.MISSING)


def evaluate_checkpoints(config: EvaluateConfig) -> None:
    """Score each checkpoint, say the metrics of each and of the mean so far, and write those of all together."""
    store = Store(resolve_root(config.root))
    snapshot = load_snapshot(store, config.snapshot or None)
    check_fingerprint(snapshot)
    check_classes(config.classes, snapshot.labels)
    mean: Evaluation | None = None
    rows = []
    for number, (name, evaluation) in enumerate(
        score_each(config.checkpoints, snapshot, config.split, config.batch_size), start=1
    ):
        mean = _add(mean, evaluation, number)
        rows.append({"checkpoint": name, **evaluation.figures, **_prefixed(mean.figures, "mean_so_far_")})
        print(f"{name}\n  alone   {_line(evaluation.figures)}" + (f"\n  mean    {_line(mean.figures)}" * (number > 1)))
    if mean is None:
        raise ConfigError("checkpoints is empty: name at least one")
    figures = mean.figures
    if config.bootstrap:
        low, high = mean_average_precision_interval(mean.scores, mean.targets, config.bootstrap)
        figures |= {"mAP_low": low, "mAP_high": high}
        print(f"  mAP     {figures['mAP']:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    folder = _output_folder(config, store)
    write_results(folder, config, snapshot, mean)
    pd.DataFrame(rows).to_csv(folder / "checkpoints.csv", index=False)
    record = {"snapshot": snapshot.snapshot_id, **asdict(config), **figures}
    (folder / "metrics.json").write_text(json.dumps(record, indent=1))
    print(f"{len(mean.scores)} clips of {config.split}, {mean.metrics.num_classes_scored} classes scored: {folder}")


def check_classes(classes: Sequence[str], labels: Labels) -> None:
    """Raise ConfigError, before anything is scored, if there is no class of a name."""
    for name in classes:
        if name not in labels.names:
            close = difflib.get_close_matches(name, labels.names, n=3, cutoff=0.3)
            raise ConfigError(
                f"expected the name of a class, found {name!r}; put each name in quotation marks."
                + (f" Close to it: {', '.join(map(repr, close))}" if close else " labels.csv of the snapshot has them")
            )


def _add(mean: Evaluation | None, evaluation: Evaluation, number: int) -> Evaluation:
    """Return the mean of `number` evaluations, of which this is the last."""
    if mean is None:
        return evaluation
    scores = mean.scores + (evaluation.scores - mean.scores) / number
    return Evaluation(scores, evaluation.targets, tagging_metrics(scores, evaluation.targets))


def write_results(folder: Path, config: EvaluateConfig, snapshot: Snapshot, evaluation: Evaluation) -> None:
    """Write scores.npz, classes.csv and the plots."""
    rows = snapshot.rows_of((config.split,))
    keys = snapshot.index["key"].take(rows).to_pylist()
    trained = tuple(sorted(set(snapshot.splits) - {config.split}))
    np.savez_compressed(
        folder / "scores.npz",
        keys=np.array(keys),
        scores=evaluation.scores.astype(np.float32),
        targets=evaluation.targets,
        mids=np.array(snapshot.labels.mids),
        names=np.array(snapshot.labels.names),
        num_train_clips=snapshot.class_counts(trained),
        epoch=0,
    )
    table = class_table(evaluation, snapshot.labels, snapshot.class_counts(trained))
    table.to_csv(folder / "classes.csv", index=False)
    plot_average_precision(table).savefig(folder / "classes.png")
    curves = plot_precision_recall(evaluation, snapshot.labels, config.classes)
    curves.savefig(folder / "precision_recall.png")
    if evaluation.main_metric == "accuracy" and len(table) <= MAX_CLASSES_IN_CONFUSION:
        plot_confusion(evaluation, snapshot.labels.names).savefig(folder / "confusion.png")


def plot_confusion(evaluation: Evaluation, names: tuple[str, ...]) -> matplotlib.figure.Figure:
    """Draw how often each class (row) is taken for each (column), as a share of the row."""
    num_classes = len(names)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (evaluation.targets.argmax(axis=1), evaluation.scores.argmax(axis=1)), 1)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    side = 3 + 0.2 * num_classes
    figure = matplotlib.figure.Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(num_classes), names, rotation=90, fontsize=7)
    axes.set_yticks(range(num_classes), names, fontsize=7)
    axes.set_xlabel("highest score")
    axes.set_ylabel("class")
    return figure


def _output_folder(config: EvaluateConfig, store: Store) -> Path:
    parent = Path(store.path("evaluations") if store.is_local else "evaluations")
    folder = Path(config.output) if config.output else parent / f"{config.split}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _prefixed(figures: dict[str, float], prefix: str) -> dict[str, float]:
    return {prefix + name: value for name, value in figures.items()}


def _line(figures: dict[str, float]) -> str:
    return "   ".join(f"{name} {value:.4f}" for name, value in figures.items())


if __name__ == "__main__":
    sys.exit(run_job(evaluate_checkpoints, {"score": score}, default_preset="score"))
