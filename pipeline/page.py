"""Render self-contained HTML pages with embedded images from a base template.

Pages show text from untrusted tables and files. Jinja therefore escapes every value, and the content security policy
forbids scripts and external resources.
"""

import base64
import io

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from pipeline.fbank_settings import NUM_MEL_BINS

FRAMES_PER_PIXEL = 3
NUM_COLOURS = 32
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ground: #fff; --ink: #1c1b1a; --soft: #666; --good: #00702f; --bad: #a00 }
@media (prefers-color-scheme: dark) {
  :root { --ground: #17161a; --ink: #eceaf0; --soft: #a5a0ad; --good: #6fcf8f; --bad: #ff8a80 }
}
body { font: 14px sans-serif; margin: 1.5em; max-width: 75em; background: var(--ground); color: var(--ink) }
table { border-collapse: collapse } td, th { padding: 2px 12px 2px 0; vertical-align: top; text-align: left }
.clips { display: flex; flex-wrap: wrap; gap: 1.2em } figure { margin: 0; width: 24em } figure img { width: 100% }
img { max-width: 100% } .spectrogram { height: 7em }
.true { font-weight: bold } .hit { color: var(--good) } .miss { color: var(--bad) } .grey { color: var(--soft) }
{% block style %}{% endblock %}
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% block body %}{% endblock %}
</body>
</html>
"""


def render_page(template: str, **values: object) -> str:
    """Render a template that extends `page` and fills its block `body`. `values` must include `title`."""
    environment = Environment(
        loader=DictLoader({"page": PAGE, "body": template}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("body").render(values)


def spectrogram_url(fbank_TM: np.ndarray, frames_per_pixel: int = FRAMES_PER_PIXEL) -> str:
    """Draw an fbank (T, M) as a PNG data URL. Time runs to the right, and high bins are at the top."""
    whole = len(fbank_TM) // frames_per_pixel * frames_per_pixel or len(fbank_TM)
    columns = fbank_TM[:whole].astype(np.float32).reshape(-1, min(frames_per_pixel, whole), NUM_MEL_BINS).mean(axis=1)
    low, high = np.percentile(columns, [5, 99])
    levels = np.clip((columns.T[::-1] - low) / max(high - low, 1e-3), 0, 1)
    # With a palette, a page with twelve clips stays small.
    image = Image.fromarray((levels * (NUM_COLOURS - 1)).astype(np.uint8)).convert("P")
    image.putpalette((colormaps["magma"](np.linspace(0, 1, NUM_COLOURS))[:, :3] * 255).astype(np.uint8).tobytes())
    out = io.BytesIO()
    image.save(out, format="png", optimize=True)
    return data_url(out.getvalue(), "image/png")


def figure_url(figure: Figure) -> str:
    """Render a matplotlib figure as a PNG data URL."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return data_url(out.getvalue(), "image/png")


def data_url(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
