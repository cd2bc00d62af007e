import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors import safe_open

from ast_model.config import ASTConfig
from ast_model.export import ModelMetadata, export_hugging_face, export_onnx, export_safetensors
from ast_model.inference import Tagger
from ast_model.model import AST
from ast_model.pretrained.load import load_pretrained
from pipeline.errors import ConfigError, CorruptError, InputError, MismatchError, WeightsError

transformers.utils.logging.disable_progress_bar()

TAGGING = ModelMetadata(labels=("Speech", "Dog, barking", "Rain"), mean=-5.5, std=3.25)


def small_model(stride: int = 16, num_frames: int = 128, **overrides: Any) -> AST:
    """Return a model with larger weights than new ones, so that its logits are as large as a trained one's."""
    shape = {"num_classes": 3, "width": 48, "depth": 2, "num_heads": 3, **overrides}
    model = AST(ASTConfig(freq_stride=stride, time_stride=stride, num_frames=num_frames, **shape)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1, generator=generator).add_(parameter.ndim == 1)
    torch.nn.init.normal_(model.head.linear.weight, generator=generator)
    return model


@pytest.mark.parametrize("num_frames", [128, 512, 1024])
@pytest.mark.parametrize("stride", [10, 12, 16])
def test_transformers_loads_the_folder_and_gives_our_logits(tmp_path: Path, stride: int, num_frames: int) -> None:
    ours = small_model(stride, num_frames)
    export_hugging_face(ours, TAGGING, tmp_path / "ast")
    load: Any = transformers.ASTForAudioClassification.from_pretrained
    theirs, report = load(tmp_path / "ast", output_loading_info=True)
    assert not any(report.values())
    fbank = torch.randn(2, num_frames, 128)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(fbank).logits, ours(fbank), atol=1e-5, rtol=0)


def test_transformers_finds_labels_and_features(tmp_path: Path) -> None:
    export_hugging_face(small_model(), TAGGING, tmp_path / "ast")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ast")
    assert config.id2label == dict(enumerate(TAGGING.labels))
    assert config.label2id == {"Speech": 0, "Dog, barking": 1, "Rain": 2}
    extractor: Any = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "ast")
    assert isinstance(extractor, transformers.ASTFeatureExtractor)
    # Half a second of silence: 48 frames at the floor of the log, then zeros, all normalised.
    values = extractor(np.zeros(8_000), sampling_rate=16_000, return_tensors="np")["input_values"]
    assert values.shape == (1, 128, 128)
    assert values[0, 0, 0] == pytest.approx((-15.942385 + 5.5) / 6.5)
    assert values[0, -1, 0] == pytest.approx(5.5 / 6.5)


def test_on_disk_names_are_those_of_published_models(tmp_path: Path) -> None:
    export_hugging_face(small_model(), TAGGING, tmp_path / "ast")
    with safe_open(tmp_path / "ast" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    body = "audio_spectrogram_transformer."
    assert f"{body}encoder.layer.1.attention.attention.query.weight" in names
    assert {f"{body}embeddings.distillation_token", f"{body}layernorm.bias", "classifier.dense.bias"} < names


def test_an_export_of_a_hugging_face_model_is_that_model_again(tmp_path: Path) -> None:
    config = transformers.ASTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, max_length=128
    )
    theirs = transformers.ASTForAudioClassification(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    export_hugging_face(load_pretrained(tmp_path / "theirs"), ModelMetadata(("a", "b"), -4, 4), tmp_path / "ours")
    again = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "ours").eval()
    fbank = torch.randn(1, 128, 128)
    with torch.inference_mode():
        assert torch.equal(again(fbank).logits, theirs(fbank).logits)


def test_safetensors_travel_alone(tmp_path: Path) -> None:
    ours = small_model(10, 300, mlp_ratio=3, patch_time=20)
    export_safetensors(ours, tmp_path / "ast.safetensors")
    loaded = load_pretrained(tmp_path / "ast.safetensors")
    assert loaded.config == ours.config
    fbank = torch.randn(1, 300, 128)
    assert torch.equal(loaded.eval()(fbank), ours(fbank))


@pytest.mark.slow
def test_onnxruntime_gives_our_logits_for_any_batch(tmp_path: Path) -> None:
    ours = small_model(10)
    export_onnx(ours, TAGGING, tmp_path / "ast.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "ast.onnx", providers=["CPUExecutionProvider"])
    for batch_size in (1, 2, 5):
        fbank = torch.randn(batch_size, 128, 128)
        (found,) = session.run(None, {"fbank": fbank.numpy()})
        np.testing.assert_allclose(np.asarray(found), ours(fbank).detach(), atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == list(TAGGING.labels)
    assert json.loads(metadata["mean"]) == -5.5
    again = Tagger.load(tmp_path / "ast.onnx", device="cpu")
    assert (again.metadata, again.model.config) == (TAGGING, ours.config)
    torch.testing.assert_close(again.model(fbank), ours(fbank))
    whole = (tmp_path / "ast.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=r"cut\.onnx is truncated or damaged"):
        load_pretrained(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: torch.nn.init.ones_(model.head.linear.bias), r"written values of head\.linear\.bias"),
        (lambda model: setattr(model.norm, "eps", 0.1), r"expected logits within 0\.0001 of the model's, found"),
    ],
)
def test_an_export_that_does_not_read_back_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[AST], Any], message: str
) -> None:
    other = small_model()
    change(other)
    monkeypatch.setattr("ast_model.export.load_pretrained", lambda path: other)
    with pytest.raises(CorruptError, match=message):
        export_safetensors(small_model(), tmp_path / "ast.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"expected 3 labels, .* found 2"):
        export_hugging_face(small_model(), ModelMetadata(("a", "b"), 0, 1), tmp_path / "ast")
    with pytest.raises(InputError, match="found 'a' twice"):
        export_hugging_face(small_model(), ModelMetadata(("a", "b", "a"), 0, 1), tmp_path / "ast")
    with pytest.raises(ConfigError, match="square patches"):
        export_hugging_face(small_model(patch_time=32), TAGGING, tmp_path / "ast")
    export_safetensors(small_model(), tmp_path / "ast.safetensors")
    with pytest.raises(InputError, match="exists already"):
        export_safetensors(small_model(), tmp_path / "ast.safetensors")
