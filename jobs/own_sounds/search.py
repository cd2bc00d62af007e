"""Search by sound for the clips with embeddings nearest to some examples."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from ast_model.embeddings.search import find_nearest_rows, normalise_rows
from ast_model.inference import Tagger
from jobs.own_sounds.searchable_clips import (
    SearchableClips,
    embed_files,
    embed_store,
    skip_files,
    standardise,
    take_clips,
)
from jobs.own_sounds.settings import SearchConfig
from pipeline.audio.decode import encode_flac
from pipeline.errors import ConfigError, InputError, quote
from pipeline.fbank_settings import SAMPLE_RATE_HZ
from pipeline.page import data_url, render_page
from pipeline.sources.listing import find_audio

log = logging.getLogger(__name__)

MAX_EXAMPLES = 3
"""Maximum number of examples on the page."""
MAX_PLAYED_S = 30.0
"""Maximum seconds of audio per player, to limit the size of the page."""
PAGE = """{% extends "page" %}
{% block body %}
<p>{{ rows | length }} nearest of {{ num_clips }} clips, by the cosine of their {{ kind }}.</p>
{% for heading, sounds in (("Examples", examples), ("Nearest", rows)) %}
<h2>{{ heading }}</h2>
<table>
{% for row in sounds %}
<tr>
<td>{{ "%.3f" % row.cosine if row.cosine is not none else "" }}</td>
<td>{% if row.player %}<audio controls preload="none" src="{{ row.player }}"></audio>{% else %}
<span class="grey">no audio stored</span>{% endif %}</td>
<td>{{ row.file or row.clip }}<br>
<span class="grey">{{ "%.2f" % row.start_s }} to {{ "%.2f" % row.end_s }} s</span></td>
<td class="true">{{ row.labels }}</td>
</tr>
{% endfor %}
</table>
{% endfor %}
{% endblock %}
"""


def search(config: SearchConfig) -> None:
    """Print the nearest clips and write them as a CSV table and an HTML page."""
    if bool(config.like) == bool(config.label):
        found = "both" if config.like else "none"
        raise ConfigError(f"expected either --like FILE or --label NAME, found {found}")
    output = Path(config.output)
    if output.suffix != ".html":
        raise ConfigError(f"--output: expected a name that ends with .html, found {quote(config.output)}")
    examples, searched = _load_clips(config)
    if not len(searched.table):
        without = f"the label {quote(config.label)}" if config.label else "the examples"
        raise InputError(f"expected clips without {without} to search, found none")
    nearest = find_nearest(examples, searched, config.num_results)
    output.parent.mkdir(parents=True, exist_ok=True)
    nearest.to_csv(output.with_suffix(".csv"), index=False, float_format="%.4f")
    title = f"Clips like {f'those of {config.label}' if config.label else ', '.join(config.like)}"
    kind = "embeddings" if config.checkpoint else "spectral statistics"
    output.write_text(_render(title, kind, examples, searched, nearest), encoding="utf-8")
    print(nearest.to_string(index=False, float_format="%.3f"))
    print(f"\n{output}\n{output.with_suffix('.csv')}")


def _load_clips(config: SearchConfig) -> tuple[SearchableClips, SearchableClips]:
    """Return the examples and the clips to search."""
    tagger = Tagger.load(config.checkpoint) if config.checkpoint else None
    if not tagger:
        log.info("no --checkpoint: comparing spectral statistics; embeddings of a trained AST find more (--checkpoint)")
    if config.label:
        examples, searched = _load_label(tagger, config)
    else:
        found = embed_files(tagger, config.audio) if config.audio else embed_store(tagger, config)
        examples, searched = embed_files(tagger, config.like), skip_files(found, find_audio(config.like))
    return (examples, searched) if tagger else standardise(examples, searched)


def _load_label(tagger: Tagger | None, config: SearchConfig) -> tuple[SearchableClips, SearchableClips]:
    """Return the clips of a class, and all other clips to search."""
    stored = embed_store(tagger, config)
    has_label = np.array([config.label in labels for labels in stored.table["labels"]], bool)
    searched = embed_files(tagger, config.audio) if config.audio else take_clips(stored, np.flatnonzero(~has_label))
    return take_clips(stored, np.flatnonzero(has_label)), searched


def find_nearest(examples: SearchableClips, searched: SearchableClips, num_results: int) -> pd.DataFrame:
    """Return the rows of `searched` nearest to the mean of the examples, with their cosines, nearest first."""
    query_D = normalise_rows(examples.embeddings_ND).mean(axis=0)
    cosines_1K, rows_1K = find_nearest_rows(query_D[None], searched.embeddings_ND, num_results)
    nearest = searched.table.iloc[rows_1K[0]].copy()
    nearest.insert(0, "cosine", cosines_1K[0])
    nearest["labels"] = nearest["labels"].map("; ".join)
    return nearest


def _render(title: str, kind: str, examples: SearchableClips, searched: SearchableClips, nearest: pd.DataFrame) -> str:
    return render_page(
        PAGE,
        title=title,
        kind=kind,
        num_clips=len(searched.table),
        examples=[_row_of_page(examples, row, None) for row in range(min(MAX_EXAMPLES, len(examples.table)))],
        rows=[_row_of_page(searched, row, nearest["cosine"][row]) for row in nearest.index],
    )


def _row_of_page(clips: SearchableClips, row: int, cosine: float | None) -> dict[str, object]:
    fields = {str(name): value for name, value in clips.table.iloc[row].items()}
    waveform = clips.read_waveform(int(row))
    player = ""
    if waveform is not None:
        flac = encode_flac(waveform[: round(MAX_PLAYED_S * SAMPLE_RATE_HZ)])
        player = data_url(flac, "audio/flac")
    return fields | {"labels": "; ".join(fields["labels"]), "cosine": cosine, "player": player}
