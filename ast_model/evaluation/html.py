"""A page of evaluated clips: spectrogram, true tags, predicted tags; the best and the worst of an evaluation."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
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
STYLE = """
body { font: 14px sans-serif; margin: 1.5em; max-width: 75em }
table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; vertical-align: top; text-align: left }
.clips { display: flex; flex-wrap: wrap; gap: 1.2em } figure { margin: 0; width: 24em } figure img { width: 100% }
img { max-width: 100% }
.true { font-weight: bold } .hit { color: #00702f } .miss { color: #a00 } .grey { color: #666 }
"""


def rank_quality(scores: Predictions) -> np.ndarray:
    """Rate how well each clip's own tags are ranked (N,): the mean over them of the precision at their rank."""
    quality = np.full(len(scores.keys), np.nan)
    for row, (values_C, are_true_C) in enumerate(zip(scores.scores, scores.targets, strict=True)):
        if are_true_C.any():
            ranks = rankdata(-values_C, method="max")[are_true_C]
            quality[row] = np.mean(rankdata(ranks, method="max") / ranks)
    return quality


def clip_page(scores: Predictions, snapshot: Snapshot, title: str) -> str:
    """Return a self-contained HTML page of the clips whose tags are ranked best and worst."""
    quality = rank_quality(scores)
    order = np.argsort(-quality, kind="stable")[: np.isfinite(quality).sum()]
    num = min(NUM_EACH, len(order) // 2 or 1)
    reader = ClipReader(snapshot)
    row_of = {key: row for row, key in enumerate(snapshot.index["key"].to_pylist())}
    parts = [f"<h1>{html.escape(title)}</h1><p>{len(scores.keys)} clips, epoch {scores.epoch}. A clip is rated by how"]
    parts.append(" high its own tags rank among all classes: 1 if they come first.</p>")
    for heading, chosen in (("Best", order[:num]), ("Worst", order[::-1][:num])):
        figures = [_figure(scores, n, float(quality[n]), reader, row_of[scores.keys[n]]) for n in chosen]
        parts.append(f'<h2>{heading}</h2><div class="clips">{"".join(figures)}</div>')
    return html_page(title, "".join(parts))


def html_page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>"


def png_tag(figure: Figure, name: str) -> str:
    """Put a figure into HTML."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}">'


def _figure(scores: Predictions, n: int, quality: float, reader: ClipReader, row: int) -> str:
    are_true, values = scores.targets[n], scores.scores[n]
    top = np.argsort(-values, kind="stable")[:NUM_TAGS]
    predicted = ", ".join(
        f'<span class="{"hit" if are_true[c] else "miss"}">{html.escape(str(scores.names[c]))} {values[c]:.2f}</span>'
        for c in top
    )
    true = ", ".join(html.escape(str(name)) for name in scores.names[are_true])
    key = html.escape(str(scores.keys[n]))
    caption = f'<span class="true">{true}</span><br>{predicted}<br><span class="grey">{key}, rated {quality:.2f}</span>'
    return f"<figure>{_spectrogram(reader, row, key)}<figcaption>{caption}</figcaption></figure>"


def _spectrogram(reader: ClipReader, row: int, name: str) -> str:
    fbank_TM = np.zeros((min(int(reader.num_frames[row]), MAX_FRAMES), NUM_MEL_BINS), np.float16)
    reader.read_fbank(row, fbank_TM)
    return spectrogram_tag(fbank_TM, name)


def spectrogram_tag(fbank_TM: np.ndarray, name: str) -> str:
    """Put a fbank (T, M) into HTML, time to the right, high bins at the top."""
    whole = len(fbank_TM) // FRAMES_PER_PIXEL * FRAMES_PER_PIXEL or len(fbank_TM)
    columns = fbank_TM[:whole].astype(np.float32).reshape(-1, min(FRAMES_PER_PIXEL, whole), NUM_MEL_BINS).mean(axis=1)
    low, high = np.percentile(columns, [5, 99])
    levels = np.clip((columns.T[::-1] - low) / max(high - low, 1e-3), 0, 1)
    image = Image.fromarray((levels * (NUM_COLOURS - 1)).astype(np.uint8)).convert("P")
    image.putpalette((colormaps["magma"](np.linspace(0, 1, NUM_COLOURS))[:, :3] * 255).astype(np.uint8).tobytes())
    out = io.BytesIO()
    image.save(out, format="png", optimize=True)
    data, seconds = base64.b64encode(out.getvalue()).decode(), len(fbank_TM) * FRAME_SHIFT_MS / 1000
    return f'<img style="height:7em" alt="{name}, {seconds:.1f} s" src="data:image/png;base64,{data}">'


def table_tag(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Put a table into HTML."""
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
