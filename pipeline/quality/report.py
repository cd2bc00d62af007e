"""Create the quality report of a snapshot, as figures in JSON and as a self-contained page."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import CorruptError, StoreError
from pipeline.fbank_settings import NUM_MEL_BINS
from pipeline.page import data_url, render_page, spectrogram_url
from pipeline.quality.distributions import AXES, SHARE, Axis
from pipeline.quality.flaws import FLAWS, find_flaws
from pipeline.quality.snapshot_summary import describe_snapshot, read_values
from pipeline.quality.store_counts import describe_store
from pipeline.reading.reader import ClipReader
from pipeline.records import FailureCategory, Reason
from pipeline.segments import HELD_OUT_SPLITS
from pipeline.snapshots.snapshot import Snapshot

NUM_WORST = 4
"""Number of clips to show for each flaw."""
MAX_FRAMES = 2000
MAX_AUDIO_BYTES = 2_000_000
"""Maximum total size of the audio in a page's players, in bytes. Base64 adds another third."""
MAX_CLIP_AUDIO_BYTES = 500_000
NUM_CLASSES_SHOWN = 20
CATEGORY_OF = {reason.value: reason.category.value for reason in Reason}
TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class ShownClip:
    """A flawed clip, as the page shows it."""

    key: str
    split: str
    value: str
    """The clip's value of the measure that the flaw refers to."""
    labels: list[str]
    spectrogram_url: str
    """Spectrogram as a data URL, or empty if the shard is unreadable."""
    player_url: str
    """Audio as a data URL, or empty if the store has no audio or the page would exceed `MAX_AUDIO_BYTES`."""


def make_report(snapshot: Snapshot, against: Snapshot | None = None) -> tuple[dict[str, Any], str]:
    """Return the figures of a snapshot as a JSON value, and the page that shows them.

    against: another snapshot to compare with, from any store.
    """
    values = read_values(snapshot)
    flaws = find_flaws(values)
    figures = describe_snapshot(snapshot, values, flaws)
    in_store = describe_store(snapshot)
    report: dict[str, Any] = {
        "root": snapshot.store.root,
        "snapshot": figures,
        "store": in_store,
        "advice": suggest(figures, in_store, snapshot.store.root),
    }
    shown = [figures]
    if against:
        others = read_values(against)
        report["against"] = describe_snapshot(against, others, find_flaws(others))
        shown.append(report["against"])
    page = render_page(
        TEMPLATE.read_text(encoding="utf-8"),
        title="What is in the data",
        report=report,
        shown=shown,
        axes=AXES,
        flaws=FLAWS,
        worst=show_worst(snapshot, values, flaws),
        categories=[str(category) for category in FailureCategory],
        category_of=CATEGORY_OF,
        held_out=HELD_OUT_SPLITS,
        rarest=sorted(figures["classes"], key=lambda row: (row["train"], row["name"]))[:NUM_CLASSES_SHOWN],
        most_flawed=_most_flawed(figures["classes"]),
        bars=bars,
        number=format_number,
    )
    return report, page


def suggest(figures: Mapping[str, Any], in_store: Mapping[str, Any], root: str) -> list[dict[str, str]]:
    """Return recommendations, each with a text and a command or setting. The most important recommendation comes
    first."""
    command = "python jobs/preprocess.py"
    num_clips, duplicates = figures["num_clips"], figures["duplicates"]
    trained = [name for name in figures["splits"] if name not in HELD_OUT_SPLITS]
    failed: Counter[str] = Counter()
    for split in figures["splits"].values():
        for reason, count in split["failed"].items():
            failed[Reason(reason).category] += count
    without = [row["name"] for row in figures["classes"] if not row["train"]]
    named = ", ".join(without[:5]) + (" …" if len(without) > 5 else "")
    flaws = [
        (
            sum(figures["flaws"][flaw.label].get(name, 0) for name in trained),
            f"{flaw.label} training clips",
            f'--data.exclude "{flaw.expression}"',
        )
        for flaw in FLAWS
    ]
    candidates = [
        (
            num_clips - figures["num_measured"],
            f"Clips of {num_clips:,} that are not measured",
            f"{command} measure --root {root}",
        ),
        (
            0 if duplicates["is_known"] else num_clips,
            "Clips that have not been searched for near-identical clips yet",
            f"{command} duplicates --root {root}",
        ),
        (
            duplicates["num_of_eval"],
            "Training clips that are near-identical to a held-out clip",
            "--data.exclude duplicate_of_eval",
        ),
        (
            sum(duplicates["same_media"].values()),
            "Held-out clips from media that also contain training clips, which makes results look too good",
            "",
        ),
        (duplicates["num_duplicates"], "Training clips that repeat another training clip", "--data.exclude duplicate"),
        *flaws,
        (
            failed["throttled"] + failed["transient"] + in_store["not_attempted"],
            "Segments that were not attempted yet or failed temporarily",
            f"{command} run --root {root}",
        ),
        (
            failed["policy"],
            "Segments that exist but are not accessible to this account, address or country",
            "--youtube.cookies FILE --fetch.proxies FILE",
        ),
        (len(without), f"Classes of {len(figures['classes'])} without a training clip ({named})", ""),
    ]
    return [{"text": f"{text}: {count:,}", "do": do} for count, text, do in candidates if count]


def show_worst(
    snapshot: Snapshot, values: Mapping[str, pa.ChunkedArray], flaws: Mapping[str, np.ndarray]
) -> dict[str, list[ShownClip]]:
    """Return the worst clips for each flaw. The first clips get players, until the audio reaches `MAX_AUDIO_BYTES`."""
    reader = ClipReader(snapshot)
    rows_of = {}
    for flaw in FLAWS:
        rows = np.flatnonzero(flaws[flaw.label])
        worst = np.argsort(-flaw.sign * values[flaw.worst].to_numpy()[rows], kind="stable")[:NUM_WORST]
        if len(rows):
            rows_of[flaw.label] = rows[worst].tolist()
    players: dict[int, str] = {}
    room = MAX_AUDIO_BYTES
    audio_lengths = snapshot.index["audio_length"].to_numpy()
    for place in range(NUM_WORST):
        for row in (rows[place] for rows in rows_of.values() if place < len(rows)):
            if row not in players and 0 < audio_lengths[row] <= min(room, MAX_CLIP_AUDIO_BYTES):
                room -= int(audio_lengths[row])
                players[row] = player_of(reader, row)
    axis_of = {flaw.label: (flaw.worst, AXES[flaw.worst].unit) for flaw in FLAWS}
    label_lists = snapshot.index["labels"]

    def show(label: str, row: int) -> ShownClip:
        column, unit = axis_of[label]
        return ShownClip(
            key=reader.key_of(row),
            split=str(snapshot.splits[row]),
            value=format_with_unit(values[column][row].as_py(), unit),
            labels=[snapshot.labels.names[c] for c in label_lists[row].as_py()],
            spectrogram_url=spectrogram_of(reader, row),
            player_url=players.get(row, ""),
        )

    return {label: [show(label, row) for row in rows] for label, rows in rows_of.items()}


def spectrogram_of(reader: ClipReader, row: int) -> str:
    """Draw a clip as a data URL; empty if its shard is unreadable."""
    fbank_TM = np.zeros((min(int(reader.num_frames[row]), MAX_FRAMES), NUM_MEL_BINS), np.float16)
    try:
        reader.read_fbank(row, fbank_TM)
    except (CorruptError, StoreError):  # the page says that the clip is unreadable
        return ""
    return spectrogram_url(fbank_TM)


def player_of(reader: ClipReader, row: int) -> str:
    """Return a clip's FLAC as a data URL; empty if its shard is unreadable."""
    try:
        return data_url(reader.read_flac(row), "audio/flac")
    except (CorruptError, StoreError):
        return ""


def _most_flawed(classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the classes in which the largest shares of clips are flawed."""
    shares = [row | {"share": row["flawed"] / (row["train"] + row["held_out"])} for row in classes if row["flawed"]]
    return sorted(shares, key=lambda row: -row["share"])[:NUM_CLASSES_SHOWN]


def bars(histogram: Mapping[str, Any], axis: Axis) -> list[dict[str, Any]]:
    """Return the bars of a histogram. Each has a height in [0, 1] and a text with its range and count."""
    counts, edges = histogram["counts"], histogram["edges"]
    heights = [math.log1p(count) if axis.is_logarithmic else count for count in counts]
    highest = max(heights) or 1
    return [
        {
            "height": height / highest,
            "text": f"{format_number(low)} to {format_number(high)} {axis.unit}: {count:,} clips",
        }
        for height, count, low, high in zip(heights, counts, edges[:-1], edges[1:], strict=True)
    ]


def format_number(value: float) -> str:
    """Format a number for display, such as `12,345`, `0.125` or `−23.1`."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 4) + 0.0:.3g}"
    return text.replace("-", "−")


def format_with_unit(value: float, unit: str) -> str:
    """Format a number with its unit. Shares are shown as percentages."""
    return f"{format_number(100 * value)} % {unit}" if unit == SHARE else f"{format_number(value)} {unit}"
