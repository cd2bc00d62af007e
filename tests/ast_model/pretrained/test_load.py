"""Compare with transformers' AST and DeiT with random weights, renamed to each layout."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save, save_file
from torch import Tensor, nn

from ast_model.config import ASTConfig
from ast_model.model import AST, adapt_positions
from ast_model.pretrained.load import load_pretrained
from pipeline.errors import ConfigError, WeightsError
from pipeline.store.storage import Store

NUM_CLASSES, WIDTH, DEPTH, NUM_HEADS = 7, 48, 2, 3
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": NUM_HEADS,
    "intermediate_size": 4 * WIDTH,
    "num_labels": NUM_CLASSES,
}

transformers.utils.logging.disable_progress_bar()


def our_config(stride: int = 16, num_frames: int = 128, **overrides: Any) -> ASTConfig:
    shape: dict[str, Any] = {"num_classes": NUM_CLASSES, "width": WIDTH, "depth": DEPTH, "num_heads": NUM_HEADS}
    return ASTConfig(freq_stride=stride, time_stride=stride, num_frames=num_frames, **{**shape, **overrides})


def randomize(model: nn.Module) -> Any:
    """Draw all weights, including biases and LayerNorms, because initial zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1, generator=generator).add_(parameter.ndim == 1)
    return model.eval()


def their_ast(stride: int = 16, num_frames: int = 128, eps: float = 1e-12) -> transformers.ASTForAudioClassification:
    settings = {"frequency_stride": stride, "time_stride": stride, "max_length": num_frames, "layer_norm_eps": eps}
    config = transformers.ASTConfig(**SHAPE, **settings)
    return randomize(transformers.ASTForAudioClassification(config))


def their_deit() -> transformers.DeiTForImageClassificationWithTeacher:
    """Build a DeiT for images of 64×64, with a grid of 4×4 patches."""
    config = transformers.DeiTConfig(**SHAPE, image_size=64, layer_norm_eps=1e-6)
    return randomize(transformers.DeiTForImageClassificationWithTeacher(config))


def timm_body(model: Any) -> dict[str, Tensor]:
    """Rename the tensors of transformers' AST or DeiT, except the head, to timm's layout."""
    tensors = {
        "cls_token": model.embeddings.cls_token,
        "dist_token": model.embeddings.distillation_token,
        "pos_embed": model.embeddings.position_embeddings,
    }
    modules = {"patch_embed.proj": model.embeddings.patch_embeddings.projection, "norm": model.layernorm}
    for number, layer in enumerate(model.layers):
        attention = layer.attention
        modules[f"blocks.{number}.norm1"] = layer.layernorm_before
        modules[f"blocks.{number}.attn.proj"] = attention.o_proj
        modules[f"blocks.{number}.norm2"] = layer.layernorm_after
        modules[f"blocks.{number}.mlp.fc1"] = layer.mlp.fc1
        modules[f"blocks.{number}.mlp.fc2"] = layer.mlp.fc2
        for kind in ("weight", "bias"):
            parts = [getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
            tensors[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    for name, module in modules.items():
        tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def official_tensors(model: transformers.ASTForAudioClassification, prefix: str = "module.") -> dict[str, Tensor]:
    """Rename the tensors to the official layout, with the two unused heads of DeiT that official files contain."""
    tensors = {f"v.{name}": tensor for name, tensor in timm_body(model.audio_spectrogram_transformer).items()}
    for name, module in {"mlp_head.0": model.classifier.layernorm, "mlp_head.1": model.classifier.dense}.items():
        tensors |= {f"{name}.weight": module.weight.detach(), f"{name}.bias": module.bias.detach()}
    for name in ("v.head", "v.head_dist"):
        tensors |= {f"{name}.weight": torch.randn(1000, WIDTH), f"{name}.bias": torch.randn(1000)}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def official_ast(stride: int = 16, num_frames: int = 128) -> transformers.ASTForAudioClassification:
    """Build transformers' AST with the epsilons of the official code."""
    model = their_ast(stride, num_frames, eps=1e-6)
    model.classifier.layernorm.eps = 1e-5
    return model


def assert_same_logits(ours: nn.Module, theirs: Any, num_frames: int) -> None:
    fbank = torch.randn(2, num_frames, 128)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(fbank), theirs(fbank).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [128, 512, 1024])
@pytest.mark.parametrize("stride", [10, 12, 16])
def test_hugging_face_folder_gives_the_logits_of_transformers(tmp_path: Path, stride: int, num_frames: int) -> None:
    theirs = their_ast(stride, num_frames)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(load_pretrained(tmp_path, our_config(stride, num_frames)), theirs, num_frames)


@pytest.mark.parametrize("prefix", ["audio_spectrogram_transformer.", ""])
def test_bin_file_with_names_of_transformers_5(tmp_path: Path, prefix: str) -> None:
    theirs = their_ast()
    tensors = {
        name.replace("audio_spectrogram_transformer.", prefix): value for name, value in theirs.state_dict().items()
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    assert_same_logits(load_pretrained(tmp_path, our_config()), theirs, 128)


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize(("stride", "num_frames"), [(10, 1024), (12, 128), (16, 512)])
def test_official_file_gives_the_same_logits(tmp_path: Path, stride: int, num_frames: int, prefix: str) -> None:
    theirs = official_ast(stride, num_frames)
    torch.save(official_tensors(theirs, prefix), tmp_path / "audioset.pth")
    assert_same_logits(load_pretrained(tmp_path / "audioset.pth", our_config(stride, num_frames)), theirs, num_frames)


def test_shape_of_an_official_file_is_detected(tmp_path: Path) -> None:
    shape = {**SHAPE, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512, "num_labels": 9}
    theirs = transformers.ASTConfig(**shape, frequency_stride=12, time_stride=12)
    torch.save(official_tensors(transformers.ASTForAudioClassification(theirs)), tmp_path / "audioset.pth")
    expected = ASTConfig(num_classes=9, freq_stride=12, time_stride=12, width=128, depth=2, num_heads=2)
    assert load_pretrained(tmp_path / "audioset.pth").config == expected


@pytest.mark.parametrize("form", ["facebook", "timm", "original"])
def test_deit_gives_the_same_tokens_for_a_grey_image(tmp_path: Path, form: str) -> None:
    theirs = their_deit()
    path = tmp_path
    if form == "facebook":
        theirs.save_pretrained(tmp_path)
    else:
        tensors = timm_body(theirs.deit) | {
            f"{head}.{kind}": torch.randn(10, WIDTH) for head in ("head", "head_dist") for kind in ("weight", "bias")
        }
        path = tmp_path / "deit_base_distilled.pth"
        torch.save({"model": tensors} if form == "original" else tensors, path)
    ours = load_pretrained(path, our_config(num_frames=64, num_mel_bins=64)).eval()
    fbank = torch.randn(2, 64, 64)
    image = fbank.transpose(1, 2).unsqueeze(1).expand(-1, 3, -1, -1)
    with torch.inference_mode():
        expected = theirs.deit(image).last_hidden_state
        torch.testing.assert_close(ours.tokens(fbank), expected, atol=1e-4, rtol=1e-5)


def test_adaptations_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(timm_body(their_deit().deit), tmp_path / "deit.pth")
    with caplog.at_level(logging.INFO):
        load_pretrained(tmp_path / "deit.pth", our_config(stride=10, num_frames=128))
    assert "positions adapted from 4×4 to 12×12" in caplog.text
    assert "patch weights summed over the colours" in caplog.text
    assert "new head for 7 classes, because the weights have none" in caplog.text


@pytest.mark.parametrize("num_frames", [128, 400, 2000])
def test_audioset_weights_adapt_to_another_length_and_other_classes(tmp_path: Path, num_frames: int) -> None:
    theirs = official_ast(10, 1024)
    torch.save(official_tensors(theirs), tmp_path / "audioset.pth")
    ours = load_pretrained(tmp_path / "audioset.pth", our_config(10, num_frames, num_classes=50))
    positions = theirs.audio_spectrogram_transformer.embeddings.position_embeddings
    torch.testing.assert_close(ours.positions, adapt_positions(positions, (12, 101), ours.config.grid))
    assert ours(torch.randn(1, num_frames, 128)).shape == (1, 50)


def test_unpublished_length_is_detected_from_the_number_of_rows(tmp_path: Path) -> None:
    theirs = official_ast(10, 300)  # 12 × 29
    torch.save(official_tensors(theirs), tmp_path / "audioset.pth")
    ours = load_pretrained(tmp_path / "audioset.pth", our_config(10, 200))
    positions = theirs.audio_spectrogram_transformer.embeddings.position_embeddings
    torch.testing.assert_close(ours.positions, adapt_positions(positions, (12, 29), (12, 19)))


def test_own_checkpoint_loads_from_folders_files_and_stores(tmp_path: Path) -> None:
    ours = randomize(AST(our_config(10, 300, patch_time=20)))
    for root in (str(tmp_path), "memory://own-checkpoint"):
        store = Store(root)
        store.write_bytes("run/epoch-1/model.safetensors", save(ours.state_dict()))
        store.write_json("run/epoch-1/checkpoint.json", {"format": 1, "model": asdict(ours.config)})
        for name in ("run/epoch-1", "run/epoch-1/model.safetensors"):
            loaded = load_pretrained(store.url(name))
            assert loaded.config == ours.config
            assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    shorter = load_pretrained(store.url("run/epoch-1"), our_config(10, 128, patch_time=20))
    expected = adapt_positions(ours.positions, ours.config.grid, shorter.config.grid)
    torch.testing.assert_close(shorter.positions, expected)


def test_folder_with_one_checkpoint_loads_and_with_several_is_refused(tmp_path: Path) -> None:
    ours = AST(our_config())
    for number in (1, 2):
        (tmp_path / f"epoch-{number}").mkdir()
        save_file(ours.state_dict(), tmp_path / f"epoch-{number}" / "model.safetensors")
        if number == 1:
            assert torch.equal(load_pretrained(tmp_path, ours.config).positions, ours.positions)
    with pytest.raises(WeightsError, match="found 2; name one: epoch-1, epoch-2"):
        load_pretrained(tmp_path, ours.config)


def test_own_tensors_without_a_description(tmp_path: Path) -> None:
    ours = randomize(AST(our_config()))
    torch.save({"state_dict": ours.state_dict(), "epoch": 3}, tmp_path / "weights.pt")
    loaded = load_pretrained(tmp_path / "weights.pt", our_config())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_pickled_code_is_not_executed(tmp_path: Path) -> None:
    torch.save({"model": {"cls_token": torch.zeros(1)}, "args": Path("elsewhere")}, tmp_path / "deit.pth")
    with pytest.raises(WeightsError, match="contains more than tensors"):
        load_pretrained(tmp_path / "deit.pth", our_config())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found a file that starts with b''"),
        (b"<!DOCTYPE html>", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
        (b"PK\x03\x04 and not much more", "truncated or damaged"),
        (b"\x80\x02 nor a pickle", "truncated or damaged|contains more than tensors"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{}", "truncated or damaged"),
    ],
)
def test_wrong_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights\.pth.*({message})"):
        load_pretrained(file, our_config())


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"weights.{kind}"
    (torch.save if kind == "pth" else save_file)(randomize(AST(our_config())).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match=r"weights.*truncated"):
        load_pretrained(file, our_config())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (our_config(width=96), r"expected v\.cls_token of shape \(1, 1, 96\), found \(1, 1, 48\)"),
        (our_config(depth=3), "expected 3 blocks of 3 heads, found 2 blocks"),
        (
            our_config(patch_freq=8),
            r"v\.patch_embed\.proj\.weight of shape \(48, 1, 8, 16\), found \(48, 1, 16, 16\)",
        ),
    ],
)
def test_weights_of_another_shape_are_rejected(tmp_path: Path, config: ASTConfig, message: str) -> None:
    torch.save(official_tensors(official_ast()), tmp_path / "audioset.pth")
    with pytest.raises(WeightsError, match=message):
        load_pretrained(tmp_path / "audioset.pth", config)


def test_missing_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    tensors = official_tensors(official_ast())
    file = tmp_path / "audioset.pth"
    torch.save({name: value for name, value in tensors.items() if "dist_token" not in name}, file)
    with pytest.raises(WeightsError, match=r"expected a tensor v\.dist_token, found none.*only distilled"):
        load_pretrained(file, our_config())
    torch.save({**tensors, "module.v.blocks.0.ls1.gamma": torch.zeros(WIDTH)}, file)
    with pytest.raises(WeightsError, match=r"found v\.blocks\.0\.ls1\.gamma"):
        load_pretrained(file, our_config())
    torch.save({"features.0.weight": torch.zeros(3)}, file)
    with pytest.raises(WeightsError, match=r"audioset\.pth: expected weights of an AST.*features\.0\.weight"):
        load_pretrained(file, our_config())


def test_described_number_of_heads_must_equal_the_config(tmp_path: Path) -> None:
    their_ast().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="expected 2 blocks of 4 heads, found 2 blocks of 3 heads"):
        load_pretrained(tmp_path, our_config(num_heads=4))


def test_weights_without_a_head_need_a_config(tmp_path: Path) -> None:
    torch.save(timm_body(their_deit().deit), tmp_path / "deit.pth")
    with pytest.raises(ConfigError, match="no head of an AST"):
        load_pretrained(tmp_path / "deit.pth")


def test_missing_source_is_reported_with_the_expected_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"expected weights at .*nowhere\.pth, found nothing"):
        load_pretrained(tmp_path / "nowhere.pth", our_config())
    with pytest.raises(WeightsError, match=r"expected model\.safetensors or pytorch_model\.bin in .* found nothing"):
        load_pretrained(tmp_path, our_config())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match=r"put its model\.safetensors and config\.json into a folder"):
        load_pretrained("MIT/no-such-ast", our_config())


def test_hub_name_is_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = their_ast()
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--somebody--small-ast"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    theirs.save_pretrained(repository / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert_same_logits(load_pretrained("somebody/small-ast", our_config()), theirs, 128)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensor: tensor.index_fill(0, torch.tensor([1]), torch.nan),
            "48 of 2,304 values that are NaN or infinite",
        ),
        (lambda tensor: tensor / 0, "2,304 of 2,304 values that are NaN or infinite"),
        (lambda tensor: (tensor * 100).to(torch.int8), "int8: quantised"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "float8_e4m3fn: quantised"),
    ],
)
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_unusable_values_are_refused(
    tmp_path: Path, kind: str, change: Callable[[Tensor], Tensor], message: str
) -> None:
    weights = randomize(AST(our_config())).state_dict()
    name = "blocks.1.attention.out.weight"
    file = tmp_path / f"weights.{kind}"
    (torch.save if kind == "pth" else save_file)(weights | {name: change(weights[name])}, file)
    with pytest.raises(
        WeightsError, match=rf"expected finite floats in blocks\.1\.attention\.out\.weight, .*{message}"
    ):
        load_pretrained(file, our_config())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = randomize(AST(our_config())).state_dict()
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, tmp_path / "weights.safetensors")
    loaded = load_pretrained(tmp_path / "weights.safetensors", our_config()).state_dict()
    assert all(torch.equal(tensor, weights[name].to(dtype).float()) for name, tensor in loaded.items())
