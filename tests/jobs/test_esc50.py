import csv
import dataclasses
from pathlib import Path

import pytest

from jobs.datasets.esc50 import read_esc50
from jobs.datasets.folds import check_folds, choose_epoch, config_of_fold
from jobs.esc50 import preset
from pipeline.errors import InputError, NoClipsError
from pipeline.snapshots.snapshot import Snapshot


def make_folder(folder: Path) -> None:
    """Make a folder in the official layout: two classes, five folds."""
    (folder / "meta").mkdir(parents=True)
    (folder / "audio").mkdir()
    rows = [
        (f"{fold}-{100 + fold}-A-{target}.wav", fold, target, name, "False", 100 + fold, "A")
        for fold in range(1, 6)
        for target, name in ((5, "cat"), (0, "dog"))
    ]
    with (folder / "meta" / "esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category", "esc10", "src_file", "take"), *rows])
    for row in rows:
        (folder / "audio" / row[0]).touch()


def test_the_official_folder_is_read(tmp_path: Path) -> None:
    make_folder(tmp_path)
    recordings, classes = read_esc50(tmp_path)
    assert classes == ["dog", "cat"]
    assert len(recordings) == 10
    first = recordings[0]
    assert (first.path.name, first.labels, first.split, first.end_ms) == ("1-101-A-5.wav", ("cat",), "fold1", 5000)
    (tmp_path / "audio" / "3-103-A-0.wav").unlink()
    with pytest.raises(InputError, match=r"1 are not in .*audio \(3-103-A-0\.wav\)"):
        read_esc50(tmp_path)
    with pytest.raises(InputError, match=r"expected ESC-50's meta/esc50\.csv"):
        read_esc50(tmp_path / "audio")


def test_a_fold_is_tested_and_the_others_learnt_from() -> None:
    config = config_of_fold(preset(), 3)
    assert config.train.eval_split == "fold3"
    assert config.train.train_splits == ("fold1", "fold2", "fold4", "fold5")
    assert (config.preset, config.train.loss, config.model.num_frames) == ("esc50", "ce", 512)


def test_a_class_of_one_clip_is_told_before_training(snapshot: Snapshot) -> None:
    counts = {f"fold{fold}": [2] * len(snapshot.labels) for fold in range(1, 6)}
    for fold in counts:
        counts[fold][3] = int(fold == "fold2")
    changed = dataclasses.replace(snapshot, stats={**snapshot.stats, "class_counts": counts})
    with pytest.raises(NoClipsError, match=rf"fold 2 can't be tested: all clips of {snapshot.labels.names[3]}"):
        check_folds(changed, preset())
    check_folds(changed, dataclasses.replace(preset(), folds=(1, 3)))


def test_the_last_epoch_counts_unless_the_papers_is_asked_for() -> None:
    curves = [[0.5, 0.8, 0.7], [0.6, 0.9, 0.5]]
    averaged = {"eval/average/mAP": 1.0}
    histories = [[{"epoch": 1.0, "eval/accuracy": each} for each in curve] + [averaged] for curve in curves]
    last = choose_epoch(histories, "last")
    assert (last["accuracies"], last["accuracy"], last["epoch"]) == ([0.7, 0.5], pytest.approx(0.6), 3)
    best = choose_epoch(histories, "best_on_test")
    assert (best["accuracy"], best["epoch"]) == (pytest.approx(0.85), 2)
    assert "chosen by the mean accuracy on the test folds" in best["how"]
