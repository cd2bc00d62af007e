"""Search by sound: the clips of a store, or windows of files, whose embeddings are nearest to some examples'."""

import difflib
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ast_model.data.augment import Normalisation
from ast_model.embeddings.extract import read_embeddings
from ast_model.embeddings.search import build_index, normalise_rows
from ast_model.inference import Tagger
from jobs.command_line.cli import resolve_root
from jobs.own_sounds.embedding import embed_snapshot
from jobs.own_sounds.settings import SearchConfig
from pipeline.audio.decode import decode_file, encode_flac
from pipeline.errors import AudioTaggingError, ConfigError, InputError, quote
from pipeline.fbank_settings import FRAMES_PER_S, SAMPLE_RATE_HZ
from pipeline.page import data_url, render_page
from pipeline.progress import show_progress
from pipeline.reading.reader import ClipReader
from pipeline.recordings.tables import MEDIA_TABLE
from pipeline.snapshots.snapshot import Snapshot, check_fingerprint, load_snapshot
from pipeline.sources.listing import find_audio
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

MAX_PLAYED_S = 30.0
"""Longest sound that a page holds of a clip."""
PAGE = """{% extends "page" %}
{% block body %}
<p>{{ rows | length }} nearest of {{ num_clips }} clips, by the cosine of their embeddings.</p>
{% for heading, sounds in (("Examples", examples), ("Nearest", rows)) %}
<h2>{{ heading }}</h2>
<table>
{% for row in sounds %}
<tr>
<td>{{ "%.3f" % row.cosine if row.cosine is not none else "" }}</td>
<td>{% if row.player %}<audio controls preload="none" src="{{ row.player }}"></audio>{% else %}
<span class="grey">no audio kept</span>{% endif %}</td>
<td>{{ row.file or row.clip }}<br>
<span class="grey">{{ "%.2f" % row.start_s }} to {{ "%.2f" % row.end_s }} s</span></td>
<td class="true">{{ row.labels }}</td>
</tr>
{% endfor %}
</table>
{% endfor %}
{% endblock %}
"""


@dataclass(frozen=True)
class Sounds:
    """Clips by row, and how to hear them.

    Columns of the table: `clip`, `file` (empty where none is known), `start_s`, `end_s`, `split`, `labels`.
    """

    table: pd.DataFrame
    embeddings_ND: np.ndarray
    read_waveform: Callable[[int], np.ndarray | None]
    """Waveform (S,) of a row; none if there is no audio."""


def search(config: SearchConfig) -> None:
    """Print the nearest clips, and write them as a table and a page."""
    if bool(config.like) == bool(config.label):
        found = "both" if config.like else "none"
        raise ConfigError(f"expected either --like FILE or --label NAME, found {found}")
    output = Path(config.output)
    if output.suffix != ".html":
        raise ConfigError(f"--output: expected a name that ends with .html, found {quote(config.output)}")
    tagger = Tagger.load(config.checkpoint)
    stored = _embed_store(tagger, config) if config.label or not config.audio else None
    searched = stored if stored and not config.audio else _embed_files(tagger, config.audio)
    if config.label and stored:
        has_label = np.array([config.label in labels for labels in stored.table["labels"]], bool)
        examples, title = _take(stored, np.flatnonzero(has_label)), f"Clips like those of {config.label}"
        # Those of the class itself would fill the list.
        searched = _take(stored, np.flatnonzero(~has_label)) if searched is stored else searched
    else:
        examples, title = _embed_files(tagger, config.like), f"Clips like {', '.join(config.like)}"
    query_D = normalise_rows(examples.embeddings_ND).mean(axis=0)
    if not len(searched.table):
        raise InputError(f"expected clips to search in besides those of {quote(config.label)}, found none")
    cosines_1K, rows_1K = build_index(searched.embeddings_ND).search(query_D[None], config.num_results)
    is_found = rows_1K[0] >= 0
    rows = rows_1K[0][is_found]
    nearest = searched.table.iloc[rows].copy()
    nearest.insert(0, "cosine", cosines_1K[0][is_found])
    nearest["labels"] = nearest["labels"].map("; ".join)
    output.parent.mkdir(parents=True, exist_ok=True)
    nearest.to_csv(output.with_suffix(".csv"), index=False, float_format="%.4f")
    shown = range(min(3, len(examples.table)))
    page = render_page(
        PAGE,
        title=title,
        num_clips=len(searched.table),
        examples=[_row_of_page(examples, row, None) for row in shown],
        rows=[_row_of_page(searched, row, cosine) for row, cosine in zip(rows, nearest["cosine"], strict=True)],
    )
    output.write_text(page, encoding="utf-8")
    print(nearest.to_string(index=False, float_format="%.3f"))
    print(f"\n{output}\n{output.with_suffix('.csv')}")


def _embed_store(tagger: Tagger, config: SearchConfig) -> Sounds:
    store = Store(resolve_root(config.root))
    snapshot = load_snapshot(store, config.snapshot or None)
    check_fingerprint(snapshot)
    names = snapshot.labels.names
    counts = snapshot.class_counts(tuple(set(snapshot.splits)))
    if config.label and config.label not in {names[column] for column in np.flatnonzero(counts)}:
        close = difflib.get_close_matches(config.label, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InputError(f"expected clips of the class {quote(config.label)} in {store.root}, found none{hint}")
    plan = embed_snapshot(snapshot, tagger.model, Normalisation(tagger.metadata.mean, tagger.metadata.std))
    index = snapshot.index
    keys = index["key"].to_pylist()
    start_s = np.array([int(key.rpartition("_")[2]) for key in keys]) / 1000
    clips = [key.rpartition("_")[0] for key in keys]
    files = _files_of_clips(store)
    table = pd.DataFrame(
        {
            "clip": clips,
            "file": [files.get(clip, "") for clip in clips],
            "start_s": start_s,
            "end_s": start_s + index["num_frames"].to_numpy() / FRAMES_PER_S,
            "split": snapshot.splits,
            "labels": [[names[column] for column in columns] for columns in index["labels"].to_pylist()],
        }
    )
    return Sounds(table, read_embeddings(plan)[:, 0], _reader_of_store(snapshot, table))


def _reader_of_store(snapshot: Snapshot, table: pd.DataFrame) -> Callable[[int], np.ndarray | None]:
    """Return how to hear a clip: from its shard if audio was kept, else from the file that it was cut from."""
    reader = ClipReader(snapshot)
    has_audio = snapshot.index["audio_length"].to_numpy() > 0

    def read(row: int) -> np.ndarray | None:
        if has_audio[row]:
            return reader.read_audio(row).astype(np.float32) / 32768
        path = Path(table["file"][row])
        return _cut(path, table["start_s"][row], table["end_s"][row]) if path.is_file() else None

    return read


def _files_of_clips(store: Store) -> dict[str, str]:
    """Return the file that each clip was cut from, where the store has a table of them."""
    name = f"tables/{MEDIA_TABLE}"
    if not store.exists(name):
        return {}
    media = pd.read_csv(io.BytesIO(store.read_bytes(name)), dtype=str)
    return dict(zip(media["id"], media["path"], strict=True))


def _embed_files(tagger: Tagger, paths: tuple[str, ...]) -> Sounds:
    """Embed windows of the model's length. A file that can't be read is named and left out."""
    rows, parts = [], []
    files, window_s = list(find_audio(paths)), tagger.model.config.num_frames / FRAMES_PER_S
    with show_progress("embed", len(files), "files") as progress:
        for file in files:
            try:
                fbank_TM = tagger.fbank(file)
            except AudioTaggingError as error:
                log.warning("left out %s", error)
            else:
                starts, embeddings_WD = tagger.embed_windows(fbank_TM)
                ends_s = np.minimum(starts + window_s, len(fbank_TM) / FRAMES_PER_S)
                clip = Path(file).stem
                rows += [(clip, file, *times, "", ()) for times in zip(starts.tolist(), ends_s.tolist(), strict=True)]
                parts.append(embeddings_WD)
            progress.advance(1)
    if not parts:
        raise InputError(f"expected sounds in {', '.join(paths)[:200]}, none of {len(files)} files could be read")
    table = pd.DataFrame(rows, columns=pd.Index(["clip", "file", "start_s", "end_s", "split", "labels"]))
    return Sounds(table, np.concatenate(parts), lambda row: _cut(Path(rows[row][1]), rows[row][2], rows[row][3]))


def _cut(file: Path, start_s: float, end_s: float) -> np.ndarray:
    return decode_file(file)[round(start_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]


def _take(sounds: Sounds, rows: np.ndarray) -> Sounds:
    table = sounds.table.iloc[rows].reset_index(drop=True)
    return Sounds(table, sounds.embeddings_ND[rows], lambda row: sounds.read_waveform(int(rows[row])))


def _row_of_page(sounds: Sounds, row: int, cosine: float | None) -> dict[str, object]:
    fields = {str(name): value for name, value in sounds.table.iloc[row].items()}
    waveform = sounds.read_waveform(int(row))
    player = ""
    if waveform is not None:
        flac = encode_flac(waveform[: round(MAX_PLAYED_S * SAMPLE_RATE_HZ)])
        player = data_url(flac, "audio/flac")
    return fields | {"labels": "; ".join(fields["labels"]), "cosine": cosine, "player": player}
