"""Compare with the official model's arithmetic, written out on the official tensor names."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from ast_model.config import ASTConfig
from ast_model.pretrained.load import load_pretrained

NUM_CLASSES = 5
SIZES = {
    # width, heads, side of DeiT's grid, our config
    "tiny": (192, 3, 14, ASTConfig.tiny),
    "small": (384, 6, 14, ASTConfig.small),
    "base": (768, 12, 24, ASTConfig.base),
}


def draw_deit(width: int, depth: int, side: int) -> dict[str, Tensor]:
    """Draw the tensors of a distilled DeiT in timm's layout."""
    random = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, width),
        "dist_token": (1, 1, width),
        "pos_embed": (1, side * side + 2, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for number in range(depth):
        for name, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes[f"blocks.{number}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"blocks.{number}.{name}.bias"] = (rows * width,)
        shapes |= {f"blocks.{number}.norm{k}.{kind}": (width,) for k in (1, 2) for kind in ("weight", "bias")}
    return {name: 0.05 * torch.randn(shape, generator=random) for name, shape in shapes.items()}


def make_official(deit: dict[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Convert a DeiT to an official AST with a grid of (frequency, time) and a new head."""
    width, side = deit["cls_token"].shape[2], math.isqrt(deit["pos_embed"].shape[1] - 2)
    places = deit["pos_embed"][:, 2:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    num_freq, num_time = grid
    if num_time <= side:
        first = side // 2 - num_time // 2
        places = places[:, :, :, first : first + num_time]
    else:
        places = nnf.interpolate(places, size=(side, num_time), mode="bilinear")
    if num_freq <= side:
        first = side // 2 - num_freq // 2
        places = places[:, :, first : first + num_freq]
    else:
        places = nnf.interpolate(places, size=(num_freq, num_time), mode="bilinear")
    tensors = {f"v.{name}": tensor for name, tensor in deit.items()}
    tensors["v.pos_embed"] = torch.cat([deit["pos_embed"][:, :2], places.flatten(2).transpose(1, 2)], dim=1)
    tensors["v.patch_embed.proj.weight"] = deit["patch_embed.proj.weight"].sum(dim=1, keepdim=True)
    random = torch.Generator().manual_seed(1)
    shapes = {"0.weight": (width,), "0.bias": (width,), "1.weight": (NUM_CLASSES, width), "1.bias": (NUM_CLASSES,)}
    return tensors | {f"mlp_head.{name}": torch.randn(shape, generator=random) for name, shape in shapes.items()}


def official_logits(tensors: dict[str, Tensor], fbank_BTM: Tensor, num_heads: int, stride: int) -> Tensor:
    """Compute the logits (B, C) without torch's modules for attention and norm."""

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt()
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    image = fbank_BTM.unsqueeze(1).transpose(2, 3)  # one channel; frequency down, time across
    weight, bias = tensors["v.patch_embed.proj.weight"], tensors["v.patch_embed.proj.bias"]
    patches = nnf.conv2d(image, weight, bias, stride=stride).flatten(2).transpose(1, 2)
    extra = [tensors[f"v.{name}"].expand(len(image), -1, -1) for name in ("cls_token", "dist_token")]
    x = torch.cat([*extra, patches], dim=1) + tensors["v.pos_embed"]
    for number in range(sum(name.endswith("norm1.weight") for name in tensors)):
        block = f"v.blocks.{number}"
        parts = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(nnf.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    x = norm(x, "v.norm", 1e-6)
    return linear(norm((x[:, 0] + x[:, 1]) / 2, "mlp_head.0", 1e-5), "mlp_head.1")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "stride", "num_frames"), [("tiny", 12, 1024), ("small", 10, 128), ("base", 16, 512)])
def test_logits_equal_the_official_model(tmp_path: Path, size: str, stride: int, num_frames: int) -> None:
    width, num_heads, side, make_config = SIZES[size]
    config = make_config(
        num_classes=NUM_CLASSES, num_frames=num_frames, freq_stride=stride, time_stride=stride, depth=1
    )
    deit = draw_deit(width, config.depth, side)
    official = make_official(deit, config.grid)
    fbank_BTM = torch.randn(2, num_frames, 128, generator=torch.Generator().manual_seed(2))
    expected_BC = official_logits(official, fbank_BTM, num_heads, stride)

    torch.save({f"module.{name}": tensor for name, tensor in official.items()}, tmp_path / "audioset.pth")
    torch.save({"model": deit}, tmp_path / "deit.pth")
    from_deit = load_pretrained(tmp_path / "deit.pth", config)
    from_official = load_pretrained(tmp_path / "audioset.pth", config)
    from_deit.head.load_state_dict(from_official.head.state_dict())  # the DeiT has no head of an AST
    for ours in (from_official, from_deit):
        with torch.inference_mode():
            torch.testing.assert_close(ours.eval()(fbank_BTM), expected_BC, atol=1e-5, rtol=1e-5)
