import io

import numpy as np
import pandas as pd
import pytest
import torch

from ast_model.tagging.tag_plot import SCALE, SHADES, TICKS_HZ, choose_lanes, plot_tags
from pipeline.fbank import compute_fbank
from pipeline.fbank_settings import NUM_MEL_BINS, SAMPLE_RATE_HZ

SILENCE_TM = np.random.default_rng(0).random((98, NUM_MEL_BINS))


def make_tags(*rows: tuple[float, str, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=pd.Index(["start_s", "label", "score"]))
    return table.assign(end_s=table["start_s"] + 1.0)


def test_every_class_that_leads_in_a_window_has_a_lane() -> None:
    leaders = [(float(n), f"class {n}", 0.1 + 0.01 * n) for n in range(9)]
    others = [(0.0, "second in the first window", 0.09), (8.0, "strong second in the last window", 0.17)]
    expected = [f"class {n}" for n in range(8, -1, -1)]
    assert choose_lanes(make_tags(*leaders, *others)) == expected
    assert choose_lanes(make_tags((0, "a", 0.9), *[(0, name, 0.1) for name in "bcdefg"])) == list("abcde")
    above, below, _ = plot_tags("9 windows", SILENCE_TM, 9.0, make_tags(*leaders, *others)).axes
    assert [text.get_text() for text in below.get_yticklabels()] == expected
    assert above.get_position().height > 0.2


def test_frequency_axis_places_tones_at_their_loudest_bins() -> None:
    above = plot_tags("tones", SILENCE_TM, 1.0, make_tags((0.0, "tone", 0.5))).axes[0]
    assert above.get_ylabel() == "frequency (Hz)"
    for place, text in zip(above.get_yticks(), above.get_yticklabels(), strict=True):
        times = torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
        fbank_TM = compute_fbank(0.5 * torch.sin(2 * torch.pi * int(text.get_text()) * times))
        assert place == pytest.approx(float(fbank_TM.mean(dim=0).argmax()) + 0.5, abs=1.01)
    assert len(above.get_yticks()) == len(TICKS_HZ)


def test_shades_start_at_white_and_separate_low_scores() -> None:
    none, faint, low = (np.array(SHADES(SCALE(score))[:3]) for score in (0.0, 0.005, 0.08))
    assert none.tolist() == [1, 1, 1]
    assert np.abs(faint - low).max() > 0.15  # 38 of 255 levels


@pytest.mark.parametrize("name", ["狗叫声", "a" * 400, "🐕 barks", "two\nlines", "كلب", "ง" * 300])
def test_names_of_any_script_and_length_leave_space_for_the_picture(name: str) -> None:
    tags = make_tags(*[(0.0, label, 0.5) for label in (name, name[::-1] + "x", "up", "down")])
    figure = plot_tags(name, SILENCE_TM, 1.0, tags)
    figure.savefig(io.BytesIO(), format="png")
    assert figure.axes[0].get_window_extent().width > 0.2 * figure.bbox.width


def test_recording_without_tags_is_drawn() -> None:
    plot_tags("no tags", SILENCE_TM, 1.0, make_tags()).savefig(io.BytesIO(), format="png")
