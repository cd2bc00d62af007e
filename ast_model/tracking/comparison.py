"""Compare the settings, data, metrics and classes of runs, as text and on an HTML page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ast_model.evaluation.main_metric import compute_difference, estimate_main_metric, select_common_clips
from ast_model.evaluation.missing_clips import bound_whole_list
from ast_model.evaluation.plots import plot_changes
from ast_model.evaluation.predictions import Predictions, parse_predictions
from ast_model.evaluation.result_files import PREDICTIONS_FILE
from ast_model.tracking.run_results import baseline_metrics, fetch_best_predictions
from ast_model.tracking.tags import RUN_TAG
from pipeline.errors import MismatchError
from pipeline.page import figure_url, render_page

NUM_CLASSES_SHOWN = 10
SETTING_TAGS = ("git.commit", "git.dirty", "hardware", "versions")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Rows = list[list[object]]
BestPredictions = tuple[str, Predictions]
"""Variant and predictions of a run's best evaluation."""
PAGE_BODY = """{% extends "page" %}
{% block body %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
<p>{{ section.note }}</p>
{% if section.rows %}
<table>
<tr>{% for cell in section.header %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in section.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if section.figure %}
<img alt="{{ section.title }}" src="{{ figure_url(section.figure) }}">
{% endif %}
{% endfor %}
{% endblock %}
"""


@dataclass(frozen=True)
class Section:
    """A titled table of the comparison, with an optional note and plot."""

    title: str
    header: list[str]
    rows: Rows
    note: str = ""
    figure: Figure | None = None


def compare_runs(client: MlflowClient, compared: Sequence[Run | Path]) -> list[Section]:
    """Compare each run, or folder of `jobs/evaluate.py`, with the first, which the sections call A."""
    letters = LETTERS[: len(compared)]
    names = Section(
        "Runs",
        ["", "name", "status", "folder", "id"],
        [[letter, *_describe(each)] for letter, each in zip(letters, compared, strict=True)],
    )
    evaluations = [_load_best(client, each) for each in compared]
    runs = [each for each in compared if isinstance(each, Run)]
    run_letters = "".join(letter for letter, each in zip(letters, compared, strict=True) if isinstance(each, Run))
    environments = [{name: run.data.tags.get(name, "unknown") for name in SETTING_TAGS} for run in runs]
    sections = [
        names,
        _compare_metrics(letters, compared, evaluations),
        *compare_on_common_clips(letters, [found and found[1] for found in evaluations]),
        _list_differences("Settings that differ", run_letters, [run.data.params for run in runs]),
        _list_differences("Code and machine that differ", run_letters, environments),
        _list_differences("Data that differ", run_letters, [_dataset_properties(run) for run in runs]),
    ]
    first = evaluations[0]
    for letter, other in zip(letters[1:], evaluations[1:], strict=True):
        if first and other:
            sections.append(_compare_classes(letters[0], letter, first[1], other[1]))
    return sections


def _describe(compared: Run | Path) -> list[object]:
    if isinstance(compared, Path):
        return [compared.name, "", str(compared), ""]
    run = compared
    return [run.info.run_name, run.info.status, run.data.tags.get(RUN_TAG, ""), run.info.run_id]


def _load_best(client: MlflowClient, compared: Run | Path) -> BestPredictions | None:
    if isinstance(compared, Path):
        file = compared / PREDICTIONS_FILE
        return compared.name, parse_predictions(file.read_bytes(), str(file))
    return fetch_best_predictions(client, compared)


def compare_on_common_clips(letters: str, evaluations: Sequence[Predictions | None]) -> list[Section]:
    """Compare all models on the clips that all of them scored, with bounds for the clips that are missing.

    The bounds refer to the models' list or, if they scored different lists, to all clips that any of them scored.
    """
    found = [(letter, each) for letter, each in zip(letters, evaluations, strict=True) if each is not None]
    if len(found) < 2:
        return []
    title = "Metrics on the common clips"
    try:
        common = select_common_clips([each for _, each in found])
    except MismatchError as error:
        return [Section(title, [], [], str(error))]
    whole, num_whole = _whole_list([each for _, each in found])
    num_common = len(common[0].keys)
    header = ["", "result [95 % interval]", f"change from {found[0][0]}", f"mAP on {whole}"]
    rows: Rows = []
    for (letter, _), each in zip(found, common, strict=True):
        change = "" if each is common[0] else compute_difference(each, common[0])
        low, high = bound_whole_list(each.scores, each.targets, num_whole - num_common)
        rows.append([letter, estimate_main_metric(each.evaluation), change, f"{low:.4f} to {high:.4f}"])
    note = (
        f"{num_common:,} clips that all scored; of the {num_whole:,} clips of {whole}, {num_whole - num_common:,} are"
        " missing. The bounds assume that the missing clips are a random part."
    )
    return [Section(title, header, rows, note)]


def _whole_list(evaluations: Sequence[Predictions]) -> tuple[str, int]:
    """Return the name and the size of the clips that a comparison refers to."""
    lists = {(each.clip_list, each.num_listed) for each in evaluations}
    if len(lists) == 1 and evaluations[0].clip_list:
        return evaluations[0].clip_list, evaluations[0].num_listed
    return "all scored clips", len(set().union(*(each.keys.tolist() for each in evaluations)))


def _list_differences(title: str, letters: str, values: Sequence[Mapping[str, Any]]) -> Section:
    names = sorted({name for each in values for name in each})
    rows: Rows = [
        [name, *(each.get(name, "–") for each in values)]
        for name in names
        if len({str(each.get(name)) for each in values}) > 1
    ]
    same = len(names) - len(rows)
    return Section(title, ["", *letters], rows, f"{same} more are equal" if rows else f"none: all {same} are equal")


def _dataset_properties(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in run.inputs.dataset_inputs if run.inputs else []:
        found |= {"snapshot": each.dataset.digest, **json.loads(each.dataset.profile or "{}")}
    return found


def _compare_metrics(
    letters: str, runs: Sequence[Run | Path], evaluations: Sequence[BestPredictions | None]
) -> Section:
    header = ["", "result [95 % interval]", f"change from {letters[0]}", "baseline", "checkpoint"]
    header += ["mAP", "AUC", "d′", "clips"]
    rows: Rows = []
    for letter, run, found in zip(letters, runs, evaluations, strict=True):
        if found is None:
            rows.append([letter, "no evaluation", *[""] * (len(header) - 2)])
            continue
        variant, predictions = found
        main, metrics = estimate_main_metric(predictions.evaluation), predictions.evaluation.metrics
        baseline = baseline_metrics(run).get(main.name) if isinstance(run, Run) else None
        first = [main, _describe_change(evaluations[0], found), "" if baseline is None else f"{baseline:.4f}"]
        others = [f"{metrics.mAP:.4f}", f"{metrics.auc:.4f}", f"{metrics.d_prime:.3f}", _count_clips(predictions)]
        rows.append([letter, *first, f"{variant}, epoch {predictions.epoch}", *others])
    note = (
        "Intervals cover 95 %; those of changes compare both runs clip by clip. The baseline is decision trees on"
        " spectral statistics of the same clips."
    )
    return Section("Metrics", header, rows, note)


def _count_clips(predictions: Predictions) -> str:
    if not predictions.clip_list:
        return str(len(predictions.keys))
    return f"{predictions.clip_list}: {predictions.coverage}"


def _describe_change(first: BestPredictions | None, other: BestPredictions) -> str:
    if first is None or first is other:
        return ""
    try:
        return str(compute_difference(other[1], first[1]))
    except MismatchError as error:
        return f"not comparable: {error}"


def _compare_classes(first: str, second: str, old: Predictions, new: Predictions) -> Section:
    title = f"Classes: {first} → {second}"
    header = ["class", f"AP {first}", f"AP {second}", "change", "training clips", "evaluation clips"]
    try:
        old, new = select_common_clips([old, new])
    except MismatchError as error:
        return Section(title, header, [], str(error))
    before = old.evaluation.metrics.average_precision
    after = new.evaluation.metrics.average_precision
    order = [n for n in np.argsort(before - after, kind="stable") if np.isfinite(after[n] - before[n])]
    shown = order if len(order) <= 2 * NUM_CLASSES_SHOWN else order[:NUM_CLASSES_SHOWN] + order[-NUM_CLASSES_SHOWN:]
    rows: Rows = [
        [
            new.names[n],
            f"{before[n]:.3f}",
            f"{after[n]:.3f}",
            f"{after[n] - before[n]:+.3f}",
            f"{old.num_train_clips[n]} → {new.num_train_clips[n]}",
            new.targets[:, n].sum(),
        ]
        for n in shown
    ]
    note = f"{len(shown)} of {len(order)} classes: largest gains first, largest losses last"
    return Section(title, header, rows, note, plot_changes(pd.Series(after - before, index=new.names), first, second))


def format_comparison(sections: Sequence[Section]) -> str:
    """Format the sections as plain text for a terminal."""
    parts = []
    for section in sections:
        parts.append(f"\n{section.title}" + (f" ({section.note})" if section.note else ""))
        if section.rows:
            frame = pd.DataFrame([[str(cell) for cell in row] for row in section.rows], columns=section.header)
            parts.append(frame.to_string(index=False, max_colwidth=60))
    return "\n".join(parts)


def render_comparison(sections: Sequence[Section], title: str) -> str:
    """Render the sections as one self-contained HTML page, with plots."""
    return render_page(PAGE_BODY, title=title, sections=sections, figure_url=figure_url)
