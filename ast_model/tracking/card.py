"""The model card of a registered version: a README.md for the Hugging Face hub, rendered from the run's records."""

import json
from typing import Any

from jinja2 import Environment, StrictUndefined
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from ast_model.evaluation.main_metric import estimate_main_metric
from ast_model.evaluation.predictions import Predictions
from ast_model.tracking.lineage import preprocessing_runs
from ast_model.tracking.run_results import baseline_metrics, fetch_predictions
from ast_model.tracking.server import tracking_errors
from ast_model.tracking.tags import EPOCH_TAG, RUN_TAG, SNAPSHOT_TAG, VARIANT_TAG

CARD = """---
{% if licence %}license: {{ licence | json }}
{% endif %}pipeline_tag: audio-classification
{% if is_hugging_face %}library_name: transformers
{% endif %}tags: [audio, audio-tagging, audio-spectrogram-transformer]
model-index:
- name: {{ name | json }}
  results:
  - task: {type: audio-classification}
    dataset: {name: {{ data.name | json }}, type: {{ data.name | json }}, split: {{ eval_split | json }}}
    metrics:
{% for name, value in metrics.items() %}
    - {type: {{ name }}, value: {{ "%.4f" % value }}}
{% endfor %}
---

# {{ name }}

An Audio Spectrogram Transformer that tags 16 kHz audio with {{ num_classes }} classes. Weights: {{ variant }} of the
training, after epoch {{ epoch }}.

## Use

{% if is_hugging_face %}
```python
from transformers import pipeline

pipeline("audio-classification", model="FOLDER_OR_HUB_NAME")("dog.wav")
```

With the code that trained it, which also accepts longer audio and more containers:

{% endif %}
```python
from ast_model.inference import Tagger

Tagger.load("FOLDER_OR_HUB_NAME").tag("dog.wav", top_k=5)
```

{% if is_probable %}
Scores rank the classes but are not probabilities unless they are calibrated.
{% else %}
Scores are a softmax over the classes.
{% endif %}

## Results

Evaluated on {{ clips }} of the held-out split `{{ eval_split }}`. The interval covers 95 %.
{% if variant == "best" %}
The epoch was chosen by its {{ main.name }} on these clips.
{% endif %}


| metric | value |
|---|---|
{% for name, value in metrics.items() %}
| {{ name }} | {{ "%.4f" % value }} {{ interval if name == main.name }} |
{% endfor %}
{% for name, value in baseline.items() %}
| {{ name }} of the baseline, decision trees on spectral statistics | {{ "%.4f" % value }} |
{% endfor %}
{% if unscored %}
The means exclude {{ unscored }} of {{ num_classes }} classes, which have no clip in this split.
{% endif %}

## Data

Snapshot `{{ snapshot }}` of `{{ data.name }}`; training splits: {{ train_splits }}.
{% if made_by %}
Preprocessing runs: {{ made_by }}.
{% endif %}

| split | clips |
|---|---|
{% for split, count in data.counts.items() %}
| {{ split }} | {{ count }} |
{% endfor %}

{% if teachers %}
The targets include the scores of these teacher models: {{ teachers }}.
{% endif %}

## Training

| | |
|---|---|
{% for key, value in training.items() %}
| {{ key }} | {{ value }} |
{% endfor %}

<details><summary>All settings</summary>

| setting | value |
|---|---|
{% for key, value in params.items() %}
| {{ key }} | {{ value }} |
{% endfor %}

</details>

## Licence

{{ licence or "Not stated" }}. The training clips belong to their uploaders and are not part of the model.
"""


def write_card(client: MlflowClient, version: ModelVersion, name: str, licence: str, is_hugging_face: bool) -> str:
    """Render the card: the hub's metadata, then Markdown. Raises TrackingError if the run has no predictions."""
    variant = version.tags[VARIANT_TAG]
    with tracking_errors(client):
        run = client.get_run(version.run_id or "")
        made_by = ", ".join(preprocessing_runs(client, version.tags[SNAPSHOT_TAG]))
    predictions = fetch_predictions(client, run.info.run_id, variant)
    params, tags = run.data.params, run.data.tags
    training = {
        "run": tags.get(RUN_TAG, run.info.run_name),
        "recipe": tags.get("preset"),
        "command": tags.get("command"),
        "code": _describe_commit(tags),
        "started from": params.get("train.init") or "random weights",
        "epochs": params.get("train.num_epochs"),
        "seed": params.get("train.seed"),
        "hardware": tags.get("hardware"),
        "versions": tags.get("versions"),
    }
    return _render(
        name=name,
        licence=licence,
        is_hugging_face=is_hugging_face,
        is_probable=params.get("train.loss", "bce") == "bce",
        variant=variant,
        epoch=version.tags[EPOCH_TAG],
        snapshot=version.tags[SNAPSHOT_TAG],
        made_by=made_by,
        data=_describe_dataset(run),
        eval_split=params.get("train.eval_split", "eval"),
        train_splits=params.get("train.train_splits", "?").replace(",", ", "),
        teachers=params.get("train.teachers", "").replace(",", ", "),
        training={key: value for key, value in training.items() if value},
        params=dict(sorted(params.items())),
        baseline=baseline_metrics(run),
        **_format_results(predictions),
    )


def _format_results(predictions: Predictions) -> dict[str, Any]:
    evaluation = predictions.evaluation
    main = estimate_main_metric(evaluation)
    num_classes = predictions.targets.shape[1]
    return {
        "main": main,
        "interval": f"({main.low:.4f} to {main.high:.4f})",
        "metrics": evaluation.metrics_by_name,
        "clips": predictions.clips_text,
        "num_classes": num_classes,
        "unscored": num_classes - evaluation.metrics.num_classes_scored,
    }


def _describe_dataset(run: Any) -> dict[str, Any]:
    """Return the name of a run's dataset and its number of clips per split."""
    for each in run.inputs.dataset_inputs if run.inputs else []:
        profile = json.loads(each.dataset.profile or "{}")
        counts = {key.removeprefix("num_clips."): n for key, n in profile.items() if key.startswith("num_clips.")}
        return {"name": each.dataset.name, "counts": counts}
    return {"name": "unknown", "counts": {}}


def _describe_commit(tags: dict[str, str]) -> str:
    commit = tags.get("git.commit", "unknown")
    return f"{commit}, with uncommitted changes" if tags.get("git.dirty") == "true" else commit


def _render(**values: Any) -> str:
    # Escape `|` and line breaks, which would break a Markdown table; the hub sanitises HTML.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_escape_cell)
    environment.filters["json"] = json.dumps
    return environment.from_string(CARD).render(values)


def _escape_cell(value: Any) -> Any:
    return " ".join(value.split()).replace("|", "\\|") if isinstance(value, str) else value
