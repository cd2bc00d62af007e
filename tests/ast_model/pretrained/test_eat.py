"""Compare with the logits of EAT's own code, which scripts/eat_logits.py wrote to eat_logits.json."""

import argparse
import collections
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ast_model.config import ASTConfig
from ast_model.export import export_onnx, export_safetensors
from ast_model.model import AST
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.metadata import ModelMetadata
from pipeline.errors import WeightsError
from tests.ast_model.pretrained.eat import BODY, DEPTH, NUM_CLASSES, WIDTH, draw_checkpoint, draw_fbank

POSITIONS = f"{BODY}fixed_positional_encoder.positions"


def their_positions(num_time: int, num_freq: int) -> torch.Tensor:
    """Compute EAT's positions in its own order: sines and cosines of the row, then of the column, time first."""
    rates = 1 / 10_000 ** (np.arange(WIDTH // 4) / (WIDTH / 4))
    rows, columns = np.tile(np.arange(num_freq), num_time), np.repeat(np.arange(num_time), num_freq)
    angles = [np.outer(places, rates) for places in (rows, columns)]
    return torch.from_numpy(np.concatenate([part(each) for each in angles for part in (np.sin, np.cos)], axis=1))[None]


def write_checkpoint(file: Path, **changes: torch.Tensor) -> None:
    """Write a fairseq checkpoint: tensors with a pickled config and counters."""
    config = argparse.Namespace(model={"depth": DEPTH}, meters=collections.defaultdict(list, loss=[1.0]))
    tensors = {**draw_checkpoint(), POSITIONS: their_positions(768, 8).float(), **changes}
    torch.save({"args": None, "cfg": config, "model": tensors, "extra_state": {"epoch": 3}}, file)


def test_logits_equal_eats_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "eat.pt")
    model = load_pretrained(tmp_path / "eat.pt").eval()
    assert model.config == ASTConfig.eat(num_classes=35, num_frames=128, width=WIDTH, depth=DEPTH, num_heads=1)
    expected = json.loads((Path(__file__).parent / "eat_logits.json").read_text())["logits"]
    with torch.inference_mode():
        torch.testing.assert_close(model(draw_fbank()), torch.tensor(expected), atol=1e-4, rtol=0)


def test_pretrained_weights_get_a_new_head(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tuned.pt")
    tuned = load_pretrained(tmp_path / "tuned.pt")
    tensors = {name.removeprefix("model."): tensor for name, tensor in draw_checkpoint().items() if "model." in name}
    other = {
        "modality_encoders.IMAGE.decoder.proj.bias": torch.zeros(3),
        "_ema": {"blocks.0.norm1.bias": torch.ones(1)},
    }
    torch.save({"cfg": None, "model": {**tensors, **other}}, tmp_path / "pretrained.pt")
    config = ASTConfig.eat(num_classes=5, num_frames=256, width=WIDTH, depth=DEPTH, num_heads=1)
    model = load_pretrained(tmp_path / "pretrained.pt", config)
    fbank = torch.randn(1, 256, 128)
    torch.testing.assert_close(model.embed(fbank), tuned.embed(fbank))
    assert model(fbank).shape == (1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_exports_preserve_config_and_weights(tmp_path: Path, form: str) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    write_checkpoint(tmp_path / "eat.pt")
    model = load_pretrained(tmp_path / "eat.pt")
    metadata = ModelMetadata([f"class {number}" for number in range(NUM_CLASSES)], 0, 1)
    if form == "onnx":
        export_onnx(model, metadata, tmp_path / "eat.onnx")
    else:
        export_safetensors(model, tmp_path / "eat.safetensors", metadata)
    again = load_pretrained(tmp_path / f"eat.{form}")
    assert again.config == model.config
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


class Harmful:
    def __reduce__(self):
        return eval, ("print('executed')",)  # Ray replaces print itself


def test_other_models_and_structures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "eat.pt"
    write_checkpoint(file)
    with pytest.raises(WeightsError, match=r"--model\.post-norm True \(here False\).*presets audioset_eat"):
        load_pretrained(file, ASTConfig(num_classes=NUM_CLASSES, width=WIDTH, depth=DEPTH, num_heads=1))
    save_file(AST(ASTConfig.nano(depth=1)).state_dict(), tmp_path / "ast.safetensors")
    with pytest.raises(WeightsError, match=r"--model\.post-norm False \(here True\)"):
        load_pretrained(tmp_path / "ast.safetensors", ASTConfig.eat(width=128, depth=1, num_heads=4))
    write_checkpoint(file, **{POSITIONS: their_positions(14, 14).float()})
    with pytest.raises(WeightsError, match="found 196 other positions: an image model"):
        load_pretrained(file)
    write_checkpoint(file, **{"model.blocks.0.gamma": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"found model\.blocks\.0\.gamma"):
        load_pretrained(file)
    torch.save({"cfg": Harmful(), "model": draw_checkpoint()}, file)
    with pytest.raises(WeightsError, match="could run foreign code"):
        load_pretrained(file)
    assert capsys.readouterr().out == ""


def write_hub_folder(folder: Path, **changes: object) -> None:
    """Write the fine-tuned checkpoint as a folder of the Hugging Face hub."""
    names = {
        f"{BODY}local_encoder.": "model.local_encoder.",
        f"{BODY}extra_tokens": "model.extra_tokens",
        f"{BODY}context_encoder.norm.": "model.pre_norm.",
        "fc_norm.": "model.fc_norm.",
        "head.": "model.head.",
    }
    tensors = {"model.fixed_positional_encoder.positions": their_positions(768, 8).float()}
    for name, tensor in draw_checkpoint().items():
        old = next((old for old in names if name.startswith(old)), "")
        tensors[names.get(old, "") + name.removeprefix(old)] = tensor.contiguous()
    config = {"model_type": "eat", "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 1, "patch_size": 16, "stride": 16}
    config |= {"mel_bins": 128, "max_length": 768, "num_classes": NUM_CLASSES, "model_variant": "finetune"}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "modeling_eat.py").write_text("raise SystemExit('executed')")


def test_hub_folder_gives_the_same_logits(tmp_path: Path) -> None:
    write_hub_folder(tmp_path, auto_map={"AutoModel": "modeling_eat.EATModel"})
    model = load_pretrained(tmp_path).eval()
    assert model.config == ASTConfig.eat(num_classes=35, num_frames=128, width=WIDTH, depth=DEPTH, num_heads=1)
    expected = json.loads((Path(__file__).parent / "eat_logits.json").read_text())["logits"]
    with torch.inference_mode():
        torch.testing.assert_close(model(draw_fbank()), torch.tensor(expected), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "value"), [("patch_size", 8), ("stride", 10), ("num_heads", 2), ("mel_bins", 64)])
def test_contradicting_config_of_a_hub_folder_is_refused(tmp_path: Path, name: str, value: int) -> None:
    write_hub_folder(tmp_path, **{name: value})
    with pytest.raises(WeightsError, match=rf"expected {name} \d+ in config.json, .* found {value}"):
        load_pretrained(tmp_path)
