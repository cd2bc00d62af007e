import logging
from pathlib import Path

import pytest

from jobs.own_sounds.lengths import plan_window, warn_of_distinct_lengths
from pipeline.recordings.tables import LabelledClip


def make_clips(label: str, lengths_ms: list[int]) -> list[LabelledClip]:
    return [LabelledClip(Path(f"{label}{length}.wav"), (label,), "train", 0, length) for length in lengths_ms]


def test_clips_longer_than_the_window_are_named_longest_first(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    longer = make_clips("long", [2_000, 9_000, 8_000, 7_000, 6_000, 5_000])
    assert plan_window(make_clips("dog", [1_000] * 394) + longer) == 112
    assert "6 of 400 clips are longer than the model's window of 1.1 s" in caplog.text
    assert "long9000.wav (9.0 s), long8000.wav (8.0 s), " in caplog.text and caplog.text.rstrip().endswith("(5.0 s), …")


def test_classes_that_padding_tells_apart_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_distinct_lengths(make_clips("hiss", [900, 1_000, 1_100] * 9) + make_clips("roar", [500, 1_000, 1_500] * 9))
    assert not caplog.text
    warn_of_distinct_lengths(make_clips("hiss", [1_000] * 9) + make_clips("roar", [2_000] * 9))
    assert "1 pairs of classes differ in length, such as hiss (up to 1.0 s) and roar (from 2.0 s)" in caplog.text
