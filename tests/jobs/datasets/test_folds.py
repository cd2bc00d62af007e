import dataclasses

import pytest

from jobs import esc50, urbansound8k
from jobs.datasets.folds import check_folds, choose_epoch, config_of_fold
from pipeline.errors import ConfigError, NoClipsError
from pipeline.snapshots.snapshot import Snapshot


def test_a_fold_is_tested_and_the_others_learnt_from() -> None:
    config = config_of_fold(esc50.preset(), 3)
    assert config.train.eval_split == "fold3"
    assert config.train.train_splits == ("fold1", "fold2", "fold4", "fold5")
    assert (config.preset, config.train.loss, config.model.num_frames) == ("esc50", "ce", 512)


def test_a_class_of_one_clip_is_told_before_training(snapshot: Snapshot) -> None:
    counts = {f"fold{fold}": [2] * len(snapshot.labels) for fold in range(1, 6)}
    for fold in counts:
        counts[fold][3] = int(fold == "fold2")
    changed = dataclasses.replace(snapshot, stats={**snapshot.stats, "class_counts": counts})
    with pytest.raises(NoClipsError, match=rf"fold 2 can't be tested: all clips of {snapshot.labels.names[3]}"):
        check_folds(changed, esc50.preset())
    check_folds(changed, dataclasses.replace(esc50.preset(), folds=(1, 3)))


def test_a_fold_is_tested_and_the_nine_others_trained_on() -> None:
    config = config_of_fold(urbansound8k.preset(), 10)
    assert config.train.eval_split == "fold10"
    assert config.train.train_splits == tuple(f"fold{fold}" for fold in range(1, 10))
    with pytest.raises(ConfigError, match="--folds must be some of 1 to 10, each once"):
        dataclasses.replace(config, folds=(11,))


def test_the_last_epoch_counts_unless_the_papers_is_asked_for() -> None:
    curves = [[0.5, 0.8, 0.7], [0.6, 0.9, 0.5]]
    averaged = {"eval/average/mAP": 1.0}
    histories = [[{"epoch": 1.0, "eval/accuracy": each} for each in curve] + [averaged] for curve in curves]
    last = choose_epoch(histories, "last")
    assert (last["accuracies"], last["accuracy"], last["epoch"]) == ([0.7, 0.5], pytest.approx(0.6), 3)
    best = choose_epoch(histories, "best_on_test")
    assert (best["accuracy"], best["epoch"]) == (pytest.approx(0.85), 2)
    assert "chosen by the mean accuracy on the test folds" in best["how"]
