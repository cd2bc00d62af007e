"""Comparison of runs: differences in settings, data, metrics and classes, as text and as one page to send on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ast_model.evaluation.plots import plot_changes
from ast_model.evaluation.predictions import AVERAGE, BEST, LAST, Predictions, select_common_clips
from ast_model.metrics import mean_average_precision_interval
from ast_model.tracking.registry import difference, fetch_predictions
from ast_model.tracking.server import EXPERIMENT, tracking_errors
from ast_model.tracking.tags import RUN_TAG
from pipeline.errors import MismatchError, TrackingError
from pipeline.page import figure_url, render_page

NUM_CLASSES_SHOWN = 10
SETTING_TAGS = ("git.commit", "git.dirty", "hardware", "versions")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Rows = list[list[object]]
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
    """A table with its title, and a figure if there is one."""

    title: str
    header: list[str]
    rows: Rows
    note: str = ""
    figure: Figure | None = None


def find_run(client: MlflowClient, text: str) -> Run:
    """Return a training by MLflow's id, its name, or the name of its folder. Raises TrackingError if unclear."""
    with tracking_errors(client):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = list(client.search_runs([experiment.experiment_id], max_results=5000)) if experiment else []
    names = [(run, (run.info.run_id, run.info.run_name, run.data.tags.get(RUN_TAG))) for run in runs]
    found = [run for run, own in names if text in own]
    if len(found) != 1:
        known = "; ".join(str(own[2] or own[1]) for _, own in names[:10]) or "none at all"
        raise TrackingError(
            f"expected one run of the experiment {EXPERIMENT!r} named {text!r}, found {len(found)}. The newest are:"
            f" {known}; a run is named by its id, its name or its folder"
        )
    return found[0]


def best_predictions(client: MlflowClient, run: Run) -> tuple[str, Predictions] | None:
    """Return the variant and predictions of a run's evaluation with the highest mAP."""
    found = []
    for variant in (BEST, AVERAGE, LAST):
        try:
            found.append((variant, fetch_predictions(client, run.info.run_id, variant)))
        except TrackingError:
            continue
    return max(found, key=lambda each: each[1].evaluation.metrics.mAP, default=None)


def compare_runs(client: MlflowClient, runs: Sequence[Run]) -> list[Section]:
    """Compare runs, each with the first."""
    letters = LETTERS[: len(runs)]
    names = Section(
        "Runs",
        ["", "name", "status", "folder", "id"],
        [
            [letter, run.info.run_name, run.info.status, run.data.tags.get(RUN_TAG, ""), run.info.run_id]
            for letter, run in zip(letters, runs, strict=True)
        ],
    )
    evaluations = [best_predictions(client, run) for run in runs]
    made_by = [{name: run.data.tags.get(name, "unknown") for name in SETTING_TAGS} for run in runs]
    sections = [
        names,
        _metrics(letters, evaluations),
        _differing("Settings that differ", letters, [run.data.params for run in runs]),
        _differing("Code and machine that differ", letters, made_by),
        _differing("Data that differ", letters, [_data(run) for run in runs]),
    ]
    first = evaluations[0]
    for letter, other in zip(letters[1:], evaluations[1:], strict=True):
        if first and other:
            sections.append(_classes(letters[0], letter, first[1], other[1]))
    return sections


def _differing(title: str, letters: str, values: Sequence[Mapping[str, Any]]) -> Section:
    names = sorted({name for each in values for name in each})
    rows: Rows = [
        [name, *(each.get(name, "–") for each in values)]
        for name in names
        if len({str(each.get(name)) for each in values}) > 1
    ]
    same = len(names) - len(rows)
    return Section(title, ["", *letters], rows, f"{same} others are the same" if rows else f"none: all {same} agree")


def _data(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in run.inputs.dataset_inputs if run.inputs else []:
        found |= {"snapshot": each.dataset.digest, **json.loads(each.dataset.profile or "{}")}
    return found


def _metrics(letters: str, evaluations: Sequence[tuple[str, Predictions] | None]) -> Section:
    rows: Rows = []
    for letter, found in zip(letters, evaluations, strict=True):
        if found is None:
            rows.append([letter, "no evaluation", *[""] * 6])
            continue
        variant, predictions = found
        metrics = predictions.evaluation.metrics
        low, high = mean_average_precision_interval(predictions.scores, predictions.targets)
        values = [f"{metrics.mAP:.4f}", f"{low:.4f} to {high:.4f}", f"{metrics.auc:.4f}", f"{metrics.d_prime:.3f}"]
        rows.append(
            [
                letter,
                f"{variant}, epoch {predictions.epoch}",
                *values,
                len(predictions.keys),
                _against(evaluations[0], found),
            ]
        )
    header = ["", "checkpoint", "mAP", "95 % interval", "AUC", "d′", "clips", f"ΔmAP vs {letters[0]}"]
    note = "Intervals by bootstrap over clips; that of a difference draws the same clips for both."
    return Section("Metrics", header, rows, note)


def _against(first: tuple[str, Predictions] | None, other: tuple[str, Predictions]) -> str:
    if first is None or first is other:
        return ""
    try:
        return str(difference(other[1], first[1]))
    except MismatchError as error:
        return f"not comparable: {error}"


def _classes(first: str, second: str, old: Predictions, new: Predictions) -> Section:
    title = f"Classes: {first} → {second}"
    header = ["class", f"AP {first}", f"AP {second}", "change", "training clips", "evaluation clips"]
    try:
        old, new = select_common_clips(old, new)
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
    note = f"{len(shown)} of {len(order)} classes: the greatest gains first, the greatest losses last"
    return Section(title, header, rows, note, plot_changes(pd.Series(after - before, index=new.names), first, second))


def as_text(sections: Sequence[Section]) -> str:
    parts = []
    for section in sections:
        parts.append(f"\n{section.title}" + (f" ({section.note})" if section.note else ""))
        if section.rows:
            frame = pd.DataFrame([[str(cell) for cell in row] for row in section.rows], columns=section.header)
            parts.append(frame.to_string(index=False, max_colwidth=60))
    return "\n".join(parts)


def render_comparison(sections: Sequence[Section], title: str) -> str:
    """Return a self-contained HTML page."""
    return render_page(PAGE_BODY, title=title, sections=sections, figure_url=figure_url)
