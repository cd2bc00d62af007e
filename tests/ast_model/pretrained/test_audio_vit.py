"""Compare with the arithmetic of AudioMosaic and AudioMAE, written out on timm's tensor names.

The upstream classes themselves (AudioMosaic at commit 67a86a8 and timm 1.0.22, random weights of width 128, 768 and
1024, inputs of 128, 512 and 1,024 frames) gave logits within 1e-6 of this project's.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file, save_file
from torch import Tensor

from ast_model.config import ASTConfig
from ast_model.export import export_folder, export_onnx
from ast_model.inference import Tagger
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.metadata import ModelMetadata
from pipeline.errors import WeightsError
from pipeline.labels import Labels

NUM_CLASSES, WIDTH, DEPTH = 5, 128, 2
AUDIO = {"sample_rate": 16_000, "frame_shift": 10.0, "num_mel_bins": 128, "norm_mean": -6.5, "norm_std": 3.25}


def draw(model: str, num_frames: int, width: int = WIDTH, depth: int = DEPTH) -> dict[str, Tensor]:
    """Draw the tensors of a fine-tuned model, time first."""
    random = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, num_frames // 16 * 8 + 1, width),
        "patch_embed.proj.weight": (width, 1, 16, 16),
        "patch_embed.proj.bias": (width,),
        "head.weight": (NUM_CLASSES, width),
        "head.bias": (NUM_CLASSES,),
    }
    norms = ["fc_norm", *(f"blocks.{number}.norm{k}" for number in range(depth) for k in (1, 2))]
    norms += ["patch_embed.norm", "norm_pre"] if model == "audiomosaic" else []
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    for number in range(depth):
        for name, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes[f"blocks.{number}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"blocks.{number}.{name}.bias"] = (rows * width,)
    return {name: 0.05 * torch.randn(shape, generator=random) + (len(shape) == 1) for name, shape in shapes.items()}


def forward(tensors: dict[str, Tensor], fbank: Tensor, depth: int = DEPTH) -> Tensor:
    """Compute the logits in time-major order, with all tokens in every block."""
    width = tensors["cls_token"].shape[2]

    def linear(name: str, x: Tensor) -> Tensor:
        return nnf.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return nnf.layer_norm(x, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)

    weight, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    x = nnf.conv2d(fbank[:, None], weight, bias, stride=16).flatten(2).transpose(1, 2)
    is_audiomosaic = "norm_pre.weight" in tensors
    x = norm("patch_embed.norm", x) if is_audiomosaic else x
    x = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), x], dim=1) + tensors["pos_embed"]
    x = norm("norm_pre", x) if is_audiomosaic else x
    for number in range(depth):
        block = f"blocks.{number}"
        query, key, value = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x)).chunk(3, dim=2)
        parts = [part.unflatten(2, (-1, 64)).transpose(1, 2) for part in (query, key, value)]
        weights = (parts[0] @ parts[1].transpose(2, 3) / 8).softmax(dim=3)
        x = x + linear(f"{block}.attn.proj", (weights @ parts[2]).transpose(1, 2).flatten(2))
        x = x + linear(f"{block}.mlp.fc2", nnf.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))))
    pooled = x.mean(dim=1) if is_audiomosaic else x[:, 1:].mean(dim=1)
    return linear("head", norm("fc_norm", pooled))


def write_folder(folder: Path, model: str, tensors: dict[str, Tensor], **changes: Any) -> Path:
    """Write a folder of the hub, with Python files that must not run."""
    num_frames = (tensors["pos_embed"].shape[1] - 1) // 8 * 16
    if model == "audiomosaic":
        config: dict[str, Any] = {"model_class": "AudioMosaicClassifier", "spec_size": [num_frames, 128]}
        config |= {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "pooling": "avg", "num_classes": NUM_CLASSES}
        config |= {"auto_map": {"AutoModel": "modeling.Model"}, "audio_preprocessing": AUDIO}
    else:
        config = {"architecture": "vit_base_patch16_224", "num_classes": NUM_CLASSES, "global_pool": "avg"}
        config |= {"pretrained_cfg": {"input_size": [1, num_frames, 128]}, "model_args": {"global_pool": "avg"}}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | changes))
    for name in ("modeling.py", "load_model.py", "__init__.py"):
        (folder / name).write_text("raise SystemExit('executed')")
    return folder


@pytest.mark.parametrize("num_frames", [128, 512, 1024])
@pytest.mark.parametrize("model", ["audiomosaic", "audiomae"])
def test_logits_equal_the_models_own(tmp_path: Path, model: str, num_frames: int) -> None:
    tensors = draw(model, num_frames)
    ours = load_pretrained(write_folder(tmp_path / model, model, tensors)).eval()
    shape = {"num_classes": NUM_CLASSES, "num_frames": num_frames, "width": WIDTH, "depth": DEPTH, "num_heads": 2}
    assert ours.config == getattr(ASTConfig, model)(**shape)
    fbank = torch.randn(2, num_frames, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours(fbank), forward(tensors, fbank), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["audiomosaic", "audiomae"])
def test_logits_of_large_models_without_description(tmp_path: Path, model: str) -> None:
    tensors = draw(model, 1024, width=1024, depth=2)
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "large.pth")
    fbank = torch.randn(1, 1024, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours = load_pretrained(tmp_path / "large.pth").eval()(fbank)
        torch.testing.assert_close(ours, forward(tensors, fbank), atol=1e-4, rtol=0)


def test_pretrained_weights_get_a_new_linear_layer(tmp_path: Path) -> None:
    tensors = draw("audiomosaic", 128)
    tuned = load_pretrained(write_folder(tmp_path / "tuned", "audiomosaic", tensors)).eval()
    for name in ("head.weight", "head.bias"):
        del tensors[name]
    tensors |= {"projector.0.weight": torch.zeros(3, WIDTH), "projector.1.num_batches_tracked": torch.tensor(3)}
    folder = write_folder(tmp_path / "pretrained", "audiomosaic", tensors, pooling="cls", num_classes=527)
    shape = {"num_classes": 3, "num_frames": 128, "width": WIDTH, "depth": DEPTH, "num_heads": 2}
    model = load_pretrained(folder, ASTConfig.audiomosaic(**shape)).eval()
    fbank = torch.randn(1, 128, 128)
    torch.testing.assert_close(model.embed(fbank), tuned.embed(fbank))
    assert torch.equal(model.head.norm.weight, tensors["fc_norm.weight"])
    assert model(fbank).shape == (1, 3)
    # AudioMosaic's and AudioMAE's fine-tuning drops the norm after the last block.
    tensors |= {"norm.weight": torch.ones(WIDTH), "norm.bias": torch.ones(WIDTH)}
    with_norm = load_pretrained(write_folder(folder, "audiomosaic", tensors, num_classes=527), model.config).eval()
    torch.testing.assert_close(with_norm.embed(fbank), tuned.embed(fbank))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["audiomosaic", "audiomae"])
def test_tags_and_exports(tmp_path: Path, model: str) -> None:
    pytest.importorskip("onnxruntime")
    folder = write_folder(tmp_path / model, model, draw(model, 128), audio_preprocessing=AUDIO)
    names = [f"class {number}" for number in range(NUM_CLASSES)]
    tagger = Tagger.load(folder, Labels(tuple(names), tuple(names)), "cpu")
    assert (tagger.metadata.mean, tagger.metadata.std) == (-6.5, 3.25)
    original = load_pretrained(folder).eval()
    metadata = ModelMetadata(names, -6.5, 3.25)
    export_onnx(original, metadata, tmp_path / "model.onnx")  # compares the logits
    export_folder(original, metadata, tmp_path / "exported", card="card")
    sound = torch.rand(20_000, generator=torch.Generator().manual_seed(2)) - 0.5
    for source in (tmp_path / "model.onnx", tmp_path / "exported"):
        again = Tagger.load(source, device="cpu")
        assert again.model.config == original.config
        torch.testing.assert_close(again.scores([sound]), tagger.scores([sound]))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("audiomosaic", {"embed_dim": 192}, "expected embed_dim 128"),
        ("audiomosaic", {"depth": 3}, "expected depth 2"),
        ("audiomosaic", {"spec_size": [512, 128]}, r"expected size \(128, 128\)"),
        ("audiomosaic", {"spec_size": [1024, 120]}, "patches in 7 rows"),
        ("audiomosaic", {"patch_size": 8}, r"expected patch_size \[16, 16\]"),
        ("audiomosaic", {"act_type": "silu"}, "expected act_type gelu"),
        ("audiomosaic", {"pooling": "fusion"}, "expected pooling avg or cls"),
        ("audiomae", {"global_pool": "map"}, "expected global_pool avg or token"),
        ("audiomae", {"num_classes": 527}, "expected num_classes 5"),
        ("audiomae", {"pretrained_cfg": {"input_size": "1024"}}, "expected the input's size"),
    ],
)
def test_contradictions_in_the_description_are_refused(
    tmp_path: Path, model: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        load_pretrained(write_folder(tmp_path / model, model, draw(model, 128), **changes))


def test_other_structures_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "audiomosaic", "audiomosaic", draw("audiomosaic", 128))
    shape = {"num_classes": NUM_CLASSES, "num_frames": 128, "width": WIDTH, "depth": DEPTH, "num_heads": 2}
    with pytest.raises(WeightsError, match=r"--model\.patch-norm True \(here False\).*--model\.pooling all"):
        load_pretrained(folder, ASTConfig.audiomae(**shape))
    tensors = load_file(folder / "model.safetensors")
    for broken, message in (
        ({name: tensor for name, tensor in tensors.items() if "fc_norm" not in name}, "expected the norm fc_norm"),
        (tensors | {"pos_embed": torch.zeros(1, 66, WIDTH)}, "found 66 positions"),
        (tensors | {"reg_token": torch.zeros(1, 1, WIDTH)}, "found reg_token"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_pretrained(write_folder(folder, "audiomosaic", broken))
