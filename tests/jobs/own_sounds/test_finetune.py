from pathlib import Path
from typing import Any

import pytest

from jobs.own_sounds.finetune import is_average_better, store_name
from jobs.own_sounds.settings import FinetuneConfig
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([{"eval/accuracy": 0.9}, {"eval/accuracy": 0.7}, {"eval/average/accuracy": 0.8}], False),
        ([{"eval/accuracy": 0.7}, {"eval/accuracy": 0.8}, {"eval/average/accuracy": 0.8}], True),
        ([{"eval/mAP": 0.3}, {"eval/average/mAP": 0.4}], True),
        ([{"eval/mAP": 0.3}], False),
    ],
)
def test_commands_to_paste_use_the_better_of_best_epoch_and_average(
    history: list[dict[str, float]], expected: bool
) -> None:
    assert is_average_better(history) == expected


def test_store_of_a_table_depends_on_its_path_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_name("my sounds.csv") == store_name(str(tmp_path / "my sounds.csv"))
    assert store_name("my sounds.csv").startswith("my_sounds-")
    assert store_name("other/my sounds.csv") != store_name("my sounds.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"folds": 1}, "--folds must be 0 or at least 2, found 1"), ({"group_by": "("}, "expected a regular expression")],
)
def test_useless_settings_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FinetuneConfig(**settings)
