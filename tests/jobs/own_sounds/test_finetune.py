import pytest

from jobs.own_sounds.finetune import is_average_better


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
