"""The page of an evaluation's clips: those whose tags are ranked best and worst."""

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
<p>{{ num_clips }} clips, epoch {{ epoch }}. A clip is rated by how high its own tags rank among all classes: 1 if they
come first.</p>
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
<br><span class="grey">{{ clip.key }}, rated {{ "%.2f" % clip.quality }}</span>
</figcaption>
</figure>
{% endfor %}
</div>
{% endfor %}
{% endblock %}
"""


@dataclass(frozen=True)
class ClipFigure:
    """An evaluated clip as the page shows it."""

    key: str
    duration_s: float
    spectrogram_url: str
    true_names: list[str]
    predicted: list[tuple[str, float, bool]]
    """Name and score, best first, and whether the tag is one of the clip's own."""
    quality: float


def rank_quality(predictions: Predictions) -> np.ndarray:
    """Rate how well each clip's own tags are ranked (N,): the mean over them of the precision at their rank."""
    from scipy.stats import rankdata  # only here: it takes half a second, and a training's workers do without

    quality = np.full(len(predictions.keys), np.nan)
    for row, (scores_C, are_true_C) in enumerate(zip(predictions.scores, predictions.targets, strict=True)):
        if are_true_C.any():
            ranks = rankdata(-scores_C, method="max")[are_true_C]
            quality[row] = np.mean(rankdata(ranks, method="max") / ranks)
    return quality


def render_clip_page(predictions: Predictions, snapshot: Snapshot, title: str) -> str:
    """Return a page of the clips whose tags are ranked best and worst, with their spectrograms."""
    quality = rank_quality(predictions)
    order = np.argsort(-quality, kind="stable")[: np.isfinite(quality).sum()]  # NaN, of clips without tags, come last
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
            quality=float(quality[n]),
        )

    groups = {"Best": map(figure, order[:num]), "Worst": map(figure, order[::-1][:num])}
    return render_page(CLIPS, title=title, num_clips=len(quality), epoch=predictions.epoch, groups=groups)
