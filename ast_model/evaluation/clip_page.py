"""Render an HTML page of an evaluation's best and worst clips."""

from dataclasses import dataclass

import numpy as np

from ast_model.evaluation.predictions import Predictions
from pipeline.fbank_settings import FRAME_SHIFT_MS, NUM_MEL_BINS
from pipeline.page import render_page, spectrogram_url
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot

NUM_EACH = 6
NUM_TAGS = 5
MAX_FRAMES = 2000
CLIPS = """{% extends "page" %}
{% block body %}
<p>{{ num_clips }} clips, epoch {{ epoch }}. The rating of a clip is the average precision of its own tags among all
classes: 1 if they come first.</p>
{% for heading, clips in groups.items() %}
<h2>{{ heading }}</h2>
<div class="clips">
{% for clip in clips %}
<figure>
<img class="spectrogram" alt="{{ clip.key }}, {{ "%.1f" % clip.duration_s }} s" src="{{ clip.spectrogram_url }}">
<figcaption>
<span class="true">{{ clip.true_names | join(", ") }}</span><br>
{% for name, score, is_true in clip.predicted %}
<span class="{{ "hit" if is_true else "miss" }}">{{ name }} {{ "%.2f" % score }}</span>{{ "" if loop.last else "," }}
{% endfor %}
<br><span class="grey">{{ clip.key }}, rating {{ "%.2f" % clip.rating }}</span>
</figcaption>
</figure>
{% endfor %}
</div>
{% endfor %}
{% endblock %}
"""


@dataclass(frozen=True)
class ClipFigure:
    """Values of one clip on the page."""

    key: str
    duration_s: float
    spectrogram_url: str
    true_names: list[str]
    predicted: list[tuple[str, float, bool]]
    """Name, score and correctness of the highest-scoring classes, best first."""
    rating: float
    """Average precision of the clip's tags among all classes."""


def rate_clips(predictions: Predictions) -> np.ndarray:
    """Return the average precision (N,) of each clip's own tags among all classes; NaN for a clip without tags."""
    from scipy.stats import rankdata  # imported late, because it takes half a second that training workers avoid

    rating = np.full(len(predictions.keys), np.nan)
    for row, (scores_C, are_true_C) in enumerate(zip(predictions.scores, predictions.targets, strict=True)):
        if are_true_C.any():
            ranks = rankdata(-scores_C, method="max")[are_true_C]
            rating[row] = np.mean(rankdata(ranks, method="max") / ranks)
    return rating


def render_clip_page(predictions: Predictions, snapshot: Snapshot, title: str) -> str:
    """Render the page, with the spectrograms from the snapshot."""
    rating = rate_clips(predictions)
    order = np.argsort(-rating, kind="stable")[: np.isfinite(rating).sum()]  # excludes NaN, which sort last
    num = min(NUM_EACH, len(order) // 2 or 1)
    reader = ClipReader(snapshot)
    row_of = {key: row for row, key in enumerate(snapshot.index["key"].to_pylist())}

    def figure(n: int) -> ClipFigure:
        scores_C, are_true_C = predictions.scores[n], predictions.targets[n]
        top = np.argsort(-scores_C, kind="stable")[:NUM_TAGS]
        row = row_of[predictions.keys[n]]
        fbank_TM = np.zeros((min(int(reader.num_frames[row]), MAX_FRAMES), NUM_MEL_BINS), np.float16)
        reader.read_fbank(row, fbank_TM)
        return ClipFigure(
            key=str(predictions.keys[n]),
            duration_s=len(fbank_TM) * FRAME_SHIFT_MS / 1000,
            spectrogram_url=spectrogram_url(fbank_TM),
            true_names=predictions.names[are_true_C].tolist(),
            predicted=[(str(predictions.names[c]), float(scores_C[c]), bool(are_true_C[c])) for c in top],
            rating=float(rating[n]),
        )

    groups = {"Best": map(figure, order[:num]), "Worst": map(figure, order[::-1][:num])}
    return render_page(CLIPS, title=title, num_clips=len(rating), epoch=predictions.epoch, groups=groups)
