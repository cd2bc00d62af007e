"""Plot a tagged recording, with its spectrogram above a timeline of its classes."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure

from ast_model.evaluation.plot_text import fit_text, font_families
from pipeline.fbank_settings import LOW_FREQ_HZ, NUM_MEL_BINS, SAMPLE_RATE_HZ

MAX_TITLE_WIDTH, MAX_LANE_WIDTH = 80, 40
"""Longest names of recordings and classes, in columns of Latin letters."""
MIN_LANES = 5
"""Minimum number of classes below the spectrogram. More are shown if more classes lead in some window."""
LANE_INCHES = 0.3
TICKS_HZ = (250, 500, 1000, 2000, 4000)
SHADES = LinearSegmentedColormap.from_list("shades", ["white", *colormaps["Blues"](np.linspace(0.1, 1, 10))])
SCALE = PowerNorm(0.5, 0, 1)
"""Colour scale with a square root, because scores of rare classes are low. 0.08 is clearly darker than 0.005."""


def plot_tags(title: str, fbank_TM: np.ndarray, length_s: float, tags: pd.DataFrame) -> Figure:
    """Plot the spectrogram of a recording above its classes over time, darker for higher scores."""
    labels = choose_lanes(tags)
    heights = 2.7, LANE_INCHES * max(1, len(labels))
    figure = Figure(figsize=(10, sum(heights) + 1), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=heights)
    title = fit_text(title, MAX_TITLE_WIDTH)
    above.set_title(title, fontfamily=font_families([title]))
    _draw_spectrogram(above, fbank_TM, length_s)
    _draw_lanes(below, tags, labels)
    below.set(xlim=(0, length_s), xlabel="seconds")
    legend = figure.colorbar(ScalarMappable(SCALE, SHADES), ax=below, label="score", ticks=[0, 0.1, 0.5, 1])
    legend.ax.tick_params(labelsize=8)
    return figure


def choose_lanes(tags: pd.DataFrame) -> list[str]:
    """Return the classes to show, strongest first. Includes all that lead in some window, and at least `MIN_LANES`."""
    best = tags.groupby("label", sort=False)["score"].max().sort_values(ascending=False, kind="stable")
    leaders = set(tags.sort_values("score", ascending=False, kind="stable").drop_duplicates("start_s")["label"])
    rest = [label for label in best.index if label not in leaders]
    shown = leaders | set(rest[: max(0, MIN_LANES - len(leaders))])
    return [label for label in best.index if label in shown]


def _draw_spectrogram(axes: Axes, fbank_TM: np.ndarray, length_s: float) -> None:
    low, high = np.percentile(fbank_TM, [5, 99])
    extent = (0, length_s, 0, NUM_MEL_BINS)
    axes.imshow(fbank_TM.T, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, extent=extent)
    axes.set_yticks(_mel_bin(np.array(TICKS_HZ)), [str(tick) for tick in TICKS_HZ])
    axes.set_ylabel("frequency (Hz)")


def _mel_bin(hz: np.ndarray) -> np.ndarray:
    """Return the positions of frequencies on an axis of mel bins, which are evenly spaced on Kaldi's mel scale."""
    low, high, mel = (1127 * np.log1p(each / 700) for each in (LOW_FREQ_HZ, SAMPLE_RATE_HZ / 2, hz))
    # The triangle of bin n peaks at step n + 1, and its row of pixels has its centre at n + 0.5.
    return (mel - low) / (high - low) * (NUM_MEL_BINS + 1) - 0.5


def _draw_lanes(axes: Axes, tags: pd.DataFrame, labels: list[str]) -> None:
    starts_s = np.unique(tags["start_s"])
    next_s = dict(zip(starts_s, np.append(starts_s, np.inf)[1:], strict=True))
    for lane, label in enumerate(labels):
        rows = tags[tags["label"] == label]
        # Windows overlap, so each bar ends where the next window starts.
        ends_s = np.minimum(rows["end_s"], rows["start_s"].map(next_s))
        spans = list(zip(rows["start_s"], ends_s - rows["start_s"], strict=True))
        axes.broken_barh(spans, (lane - 0.4, 0.8), color=SHADES(SCALE(rows["score"].to_numpy())))
    names = [fit_text(label, MAX_LANE_WIDTH) for label in labels]
    axes.set_yticks(range(len(names)), names, fontsize=8, fontfamily=font_families(names))
    axes.set_ylim(max(0, len(labels) - 1) + 0.5, -0.5)
