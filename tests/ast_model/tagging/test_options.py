import math
from typing import Any

import pytest

from ast_model.tagging.options import TaggingOptions
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1, found 0"),
        ({"threshold": math.nan}, "threshold must be between 0 and 1, found nan"),
        ({"window_s": math.inf}, "window_s must be above 0 and finite, found inf"),
        ({"hop_s": -1}, "hop_s must be above 0"),
        ({"hop_s": 0.125}, r"hop_s must be a multiple of 0\.01 s, found 0\.125; use 0\.12 or 0\.13"),
        ({"hop_s": 0.004}, r"found 0\.004; use 0\.01$"),
    ],
)
def test_impossible_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TaggingOptions(**options)


@pytest.mark.parametrize("hop_s", [0.01, 0.07, 0.29, 0.1 + 0.2, 1.28, 3600.01])
def test_hops_of_whole_frames_pass_in_spite_of_rounding(hop_s: float) -> None:
    assert TaggingOptions(hop_s=hop_s).hop_s == hop_s
