"""Render pages with names that contain markup."""

import dataclasses
from html.parser import HTMLParser

import numpy as np

from ast_model.evaluation.clip_page import render_clip_page
from ast_model.evaluation.predictions import Predictions
from ast_model.tracking.comparison import Section, render_comparison
from pipeline.snapshots.snapshot import Snapshot

HOSTILE = "\"><script>alert('1')</script>&amp;{{ 7 * 7 }}"


class Page(HTMLParser):
    """Parser that collects tags, texts and attribute values, as a browser would see them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_markup_in_names_is_escaped_on_the_clip_page(snapshot: Snapshot) -> None:
    rows = snapshot.rows_of(("eval",))
    targets = snapshot.targets(rows).toarray().astype(bool)
    names = np.array([HOSTILE] * targets.shape[1])
    keys = np.array(snapshot.index["key"].take(rows).to_pylist())
    predictions = Predictions(keys, names, names, targets + 0.5, targets, targets.sum(axis=0), 1)
    page = Page(render_clip_page(predictions, snapshot, HOSTILE))
    assert "script" not in page.tags and "img" in page.tags
    assert HOSTILE in page.texts and f"{HOSTILE} 1.50" in page.texts


def test_markup_in_names_is_escaped_on_the_comparison_page() -> None:
    section = Section(HOSTILE, ["", HOSTILE], [[HOSTILE, 1]], HOSTILE)
    page = Page(render_comparison([section, dataclasses.replace(section, rows=[])], HOSTILE))
    assert "script" not in page.tags and {"table", "h2"} <= page.tags
    assert page.texts.count(HOSTILE) == 8  # title, heading, two section headings, two notes and two cells
