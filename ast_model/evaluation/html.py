"""Self-contained pages of HTML: one template of a page, and the page of an evaluation's clips.

What a page says comes from tables and files of others, so Jinja escapes every value that a template names.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import rankdata

from ast_model.evaluation.predictions import Predictions
from pipeline.fbank import FRAME_SHIFT_MS, NUM_MEL_BINS
from pipeline.reading.reader import ClipReader
from pipeline.snapshots.snapshot import Snapshot

NUM_EACH = 6
NUM_TAGS = 5
MAX_FRAMES = 2000
FRAMES_PER_PIXEL = 3
NUM_COLOURS = 32
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 14px sans-serif; margin: 1.5em; max-width: 75em }
table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; vertical-align: top; text-align: left }
.clips { display: flex; flex-wrap: wrap; gap: 1.2em } figure { margin: 0; width: 24em } figure img { width: 100% }
img { max-width: 100% } .spectrogram { height: 7em }
.true { font-weight: bold } .hit { color: #00702f } .miss { color: #a00 } .grey { color: #666 }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% block body %}{% endblock %}
</body>
</html>
"""
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


def render_page(template: str, **values: object) -> str:
    """Render a template that extends `page` and fills its block `body`; `values` must have a title."""
    environment = Environment(
        loader=DictLoader({"page": PAGE, "body": template}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("body").render(values)


def rank_quality(predictions: Predictions) -> np.ndarray:
    """Rate how well each clip's own tags are ranked (N,): the mean over them of the precision at their rank."""
    quality = np.full(len(predictions.keys), np.nan)
    for row, (scores_C, are_true_C) in enumerate(zip(predictions.scores, predictions.targets, strict=True)):
        if are_true_C.any():
            ranks = rankdata(-scores_C, method="max")[are_true_C]
            quality[row] = np.mean(rankdata(ranks, method="max") / ranks)
    return quality


def clip_page(predictions: Predictions, snapshot: Snapshot, title: str) -> str:
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


def spectrogram_url(fbank_TM: np.ndarray, frames_per_pixel: int = FRAMES_PER_PIXEL) -> str:
    """Draw a fbank (T, M), time to the right, high bins at the top. A page holds its pictures: it can be sent on."""
    whole = len(fbank_TM) // frames_per_pixel * frames_per_pixel or len(fbank_TM)
    columns = fbank_TM[:whole].astype(np.float32).reshape(-1, min(frames_per_pixel, whole), NUM_MEL_BINS).mean(axis=1)
    low, high = np.percentile(columns, [5, 99])
    levels = np.clip((columns.T[::-1] - low) / max(high - low, 1e-3), 0, 1)
    # A palette keeps a page of twelve clips small.
    image = Image.fromarray((levels * (NUM_COLOURS - 1)).astype(np.uint8)).convert("P")
    image.putpalette((colormaps["magma"](np.linspace(0, 1, NUM_COLOURS))[:, :3] * 255).astype(np.uint8).tobytes())
    out = io.BytesIO()
    image.save(out, format="png", optimize=True)
    return _png_url(out.getvalue())


def figure_url(figure: Figure) -> str:
    """Draw a figure of matplotlib into the address of an image."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return _png_url(out.getvalue())


def _png_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
