"""The front end in JSON files next to weights is obeyed or refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_model.config import AUDIOSET_MEAN, AUDIOSET_STD, ASTConfig
from ast_model.export import export_hugging_face
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.metadata import ModelMetadata
from pipeline.errors import WeightsError

FEATURES = "preprocessor_config.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = AST(ASTConfig.nano(num_classes=3, num_frames=64, depth=1))
    export_hugging_face(model, ModelMetadata(("a", "b", "c"), -5, 4), tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_input_without_normalisation_is_obeyed(folder: Path) -> None:
    change(folder / FEATURES, do_normalize=False)
    tagger = Tagger.load(folder, device="cpu")
    fbank = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    with torch.inference_mode():
        expected = load_pretrained(folder).eval()(torch.from_numpy(fbank)[None]).sigmoid()[0]
    torch.testing.assert_close(torch.from_numpy(tagger.scores_of_fbank(fbank)), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_rate": 32_000}, "expected sampling_rate 16000 in preprocessor_config.json"),
        ({"num_mel_bins": 64}, "expected num_mel_bins 128"),
        ({"max_length": 1024}, "expected max_length 64"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "expected feature_extractor_type ASTFeatureExtractor"),
        ({"std": 0}, "expected a finite mean and a positive std|valid mean and std.*found -5 and 0"),
        ({"mean": "low"}, "valid mean and std"),
    ],
)
def test_other_front_ends_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    change(folder / FEATURES, **changes)
    with pytest.raises(WeightsError, match=message):
        Tagger.load(folder, device="cpu")
    load_pretrained(folder)  # as initial weights, with the statistics of the training data


def test_missing_statistics_are_assumed_for_audioset_only(folder: Path, tmp_path: Path) -> None:
    (folder / FEATURES).unlink()
    with pytest.raises(WeightsError, match=r"expected preprocessor_config\.json next to config\.json"):
        Tagger.load(folder, device="cpu")
    model = AST(ASTConfig.nano(num_classes=527, depth=1))
    names = [f"class {number}" for number in range(527)]
    export_hugging_face(model, ModelMetadata(names, -5, 4), tmp_path / "audioset")
    (tmp_path / "audioset" / FEATURES).unlink()
    metadata = Tagger.load(tmp_path / "audioset", device="cpu").metadata
    assert (metadata.mean, metadata.std) == (AUDIOSET_MEAN, AUDIOSET_STD)


def test_sharded_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="found a sharded checkpoint"):
        load_pretrained(folder)
