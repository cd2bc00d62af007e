import numpy as np
import pytest
from scipy.fft import dct

from ast_model.config import TrainConfig
from ast_model.embeddings.statistics import spectral_statistics
from jobs.own_sounds.baseline import Baseline, fit_and_score, measure_baseline
from pipeline.snapshots.snapshot import Snapshot


def test_statistics_are_cepstral_means_deviations_changes_and_quantiles() -> None:
    fbank_TM = np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32)
    found = spectral_statistics(fbank_TM)
    cepstrum = np.asarray(dct(fbank_TM, axis=1, norm="ortho"))[:, :40]
    np.testing.assert_allclose(found[:40], cepstrum.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[40:80], cepstrum.std(axis=0), rtol=1e-5)
    assert found.shape == (4 * 40 + 3 * 32,)
    assert np.isfinite(spectral_statistics(fbank_TM[:1])).all(), "a clip of one frame"


@pytest.mark.parametrize("num_labels", [1, 2])
def test_trees_recognise_classes_that_differ_in_a_feature(num_labels: int) -> None:
    random = np.random.default_rng(0)
    classes = random.integers(3, size=(200, num_labels))
    targets = np.zeros((200, 5))
    np.put_along_axis(targets, classes, 1, axis=1)  # two classes have no clips
    features = targets + random.normal(scale=0.1, size=targets.shape)
    scores = fit_and_score(features[:150], targets[:150], features[150:], seed=0)
    assert scores.shape == (50, 5)
    assert ((scores > 0.5) == targets[150:]).mean() > 0.98


def test_only_one_varying_class_is_scored() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0]] * 10)
    scores = fit_and_score(targets[:, 1:2] * 1.0, targets, np.array([[0.0], [1.0]]), seed=0)
    np.testing.assert_array_equal(scores.round(), [[0, 0, 0], [0, 1, 0]])


@pytest.mark.slow
def test_baseline_of_a_snapshot_has_the_models_metrics(snapshot: Snapshot) -> None:
    baseline = measure_baseline(snapshot, TrainConfig(eval_split="eval"))
    assert 0 < baseline.metrics["mAP"] <= 1
    assert baseline.tracked_metrics() == {f"baseline/{name}": value for name, value in baseline.metrics.items()}


def test_comparison_advises_only_if_the_baseline_is_better() -> None:
    baseline = Baseline({"mAP": 0.8, "accuracy": 0.84}, 2.0)
    worse = [{"eval/mAP": 0.9, "eval/accuracy": 0.3}, {"eval/mAP": 0.9, "eval/accuracy": 0.7}]
    expected = "accuracy 0.8400 by decision trees on spectral statistics, 0.7000 by the model: 0.1400 below this"
    assert baseline.compare(worse).startswith(expected)
    average = {"eval/average/mAP": 0.9, "eval/average/accuracy": 0.9}
    assert baseline.compare([*worse, average]).endswith("0.9000 by the model")
    assert "--init" not in baseline.compare([{"eval/mAP": 0.8}])
