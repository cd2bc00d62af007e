import dataclasses
import statistics

import pytest

from jobs import esc50, urbansound8k
from jobs.datasets.fold_results import choose_epoch
from jobs.datasets.folds import check_folds, config_of_fold
from pipeline.errors import ConfigError, NoClipsError
from pipeline.snapshots.snapshot import Snapshot


def test_esc50_trains_on_all_folds_but_the_tested_one() -> None:
    config = config_of_fold(esc50.preset(), 3)
    assert config.train.eval_split == "fold3"
    assert config.train.train_splits == ("fold1", "fold2", "fold4", "fold5")
    assert (config.preset, config.train.loss, config.model.num_frames) == ("esc50", "ce", 512)


def test_fold_with_all_clips_of_a_class_is_rejected(snapshot: Snapshot) -> None:
    counts = {f"fold{fold}": [2] * len(snapshot.labels) for fold in range(1, 6)}
    for fold in counts:
        counts[fold][3] = int(fold == "fold2")
    changed = dataclasses.replace(snapshot, stats={**snapshot.stats, "class_counts": counts})
    with pytest.raises(
        NoClipsError, match=rf"can't test fold 2, because it contains all clips of {snapshot.labels.names[3]}"
    ):
        check_folds(changed, esc50.preset())
    check_folds(changed, dataclasses.replace(esc50.preset(), folds=(1, 3)))


def test_urbansound8k_trains_on_nine_folds_and_rejects_unknown_folds() -> None:
    config = config_of_fold(urbansound8k.preset(), 10)
    assert config.train.eval_split == "fold10"
    assert config.train.train_splits == tuple(f"fold{fold}" for fold in range(1, 10))
    with pytest.raises(ConfigError, match="--folds must be some of 1 to 10, each once"):
        dataclasses.replace(config, folds=(11,))


def test_last_epoch_is_reported_unless_the_best_is_chosen() -> None:
    curves = [[0.5, 0.8, 0.7], [0.6, 0.9, 0.5]]
    averaged = {"eval/average/mAP": 1.0}
    histories = {
        f"fold{fold}": [{"epoch": 1.0, "eval/accuracy": each} for each in curve] + [averaged]
        for fold, curve in enumerate(curves, start=1)
    }
    last = choose_epoch(histories, "last", baselines={"fold1": 0.8, "fold2": 0.6})
    assert (last.scores, last.epoch) == ({"fold1": 0.7, "fold2": 0.5}, 3)
    assert (last.mean, last.deviation) == (pytest.approx(0.6), pytest.approx(statistics.stdev([0.7, 0.5])))
    assert last.lines()[0] == "fold1      accuracy 0.7000   baseline 0.8000"
    assert last.lines()[-1].startswith("mean       accuracy 0.6000 ± 0.1414   baseline 0.7000 ± 0.1414   (epoch 3 of 3")
    best = choose_epoch(histories, "best_on_test")
    assert (best.mean, best.epoch) == (pytest.approx(0.85), 2)
    assert "chosen by the mean accuracy on the test folds" in best.how
