"""Detect AudioMosaic and AudioMAE: audio transformers with one class token, in timm's layout.

Both models read (frames, bins), so their patches are time-major and time is the first axis of their kernels. Sources:
github.com/HanxunH/AudioMosaic, commit 67a86a8, and timm's `VisionTransformer`, version 1.0.22.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ast_model.config import ASTConfig
from ast_model.config.model import Pooling
from ast_model.pretrained.detect import HEAD_WIDTH, Weights
from pipeline.errors import WeightsError
from pipeline.fbank_settings import NUM_MEL_BINS

_POOLING_OF_AUDIOMOSAIC: Mapping[str, Pooling] = {"avg": "all", "cls": "extra"}
_POOLING_OF_TIMM: Mapping[str, Pooling] = {"avg": "patches", "token": "extra"}
_FIXED_SETTINGS = {
    "in_chans": 1,
    "mlp_ratio": 4,
    "qkv_bias": True,
    "qk_norm": False,
    "proj_bias": True,
    "norm_layer_type": "layernorm",
    "act_type": "gelu",
}
"""Settings in AudioMosaic's `config.json` that have a single supported value."""
_SHAPE_SETTINGS = ("embed_dim", "depth", "num_heads", "patch_size", "pre_norm", "num_classes")


def describe_audio_vit(weights: Weights, depth: int, description: Mapping[str, Any]) -> ASTConfig:
    """Return the config of an AudioMosaic or AudioMAE, from its tensors and its pooling in `config.json`.

    Raises WeightsError if the tensors fit neither model or contradict `config.json`.
    """
    if "head.linear.weight" in weights and "head.norm.weight" not in weights:
        raise WeightsError(
            "expected the norm fc_norm before the head, found a head without it; only AudioMosaic's and AudioMAE's"
            " heads are supported"
        )
    is_audiomosaic = {"patch_norm.weight", "input_norm.weight"} <= weights.keys()
    width, (patch_time, patch_freq) = weights["class_token"].shape[2], weights["patch_embedding.weight"].shape[2:]
    found = _settings(description)
    num_mel_bins = found.get("size", (0, NUM_MEL_BINS))[1]
    make = ASTConfig.audiomosaic if is_audiomosaic else ASTConfig.audiomae
    config = make(
        num_classes=len(weights.get("head.linear.weight", ())) or ASTConfig.num_classes,
        num_frames=_num_frames(weights["positions"], num_mel_bins, patch_freq, patch_time),
        num_mel_bins=num_mel_bins,
        patch_freq=patch_freq,
        patch_time=patch_time,
        freq_stride=patch_freq,
        time_stride=patch_time,
        width=width,
        depth=depth,
        num_heads=found.get("num_heads", max(1, width // HEAD_WIDTH)),
        patch_norm="patch_norm.weight" in weights,
        input_norm="input_norm.weight" in weights,
        final_norm="norm.weight" in weights,
        pooling=_pooling(description, "all" if is_audiomosaic else "patches"),
    )
    _check_settings(found, config, "head.linear.weight" in weights)
    return config


def order_by_frequency(weights: Weights, config: ASTConfig) -> None:
    """Convert time-major kernels and positions to this project's order, in place."""
    weights["patch_embedding.weight"] = weights["patch_embedding.weight"].transpose(2, 3)
    num_freq, num_time = config.grid
    extra_11D, patches_1PD = weights["positions"].split([1, num_freq * num_time], dim=1)
    patches_1FTD = patches_1PD.unflatten(1, (num_time, num_freq)).transpose(1, 2)
    weights["positions"] = torch.cat([extra_11D, patches_1FTD.flatten(1, 2)], dim=1)


def _num_frames(positions_1ND: Tensor, num_mel_bins: int, patch_freq: int, patch_time: int) -> int:
    num_patches, num_freq = positions_1ND.shape[1] - 1, num_mel_bins // patch_freq
    if num_freq < 1 or num_patches < 1 or num_patches % num_freq:
        raise WeightsError(
            f"expected in pos_embed one class token and patches in {num_freq} rows ({num_mel_bins} mel bins in patches"
            f" of {patch_freq}), found {positions_1ND.shape[1]} positions: another patch size or number of mel bins?"
        )
    return num_patches // num_freq * patch_time


def _settings(description: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings in AudioMosaic's or timm's `config.json`, with the input's size, under AudioMosaic's names."""
    known = {*_FIXED_SETTINGS, *_SHAPE_SETTINGS}
    if "architecture" not in description:
        settings = {name: value for name, value in description.items() if name in known}
        size = description.get("spec_size")
    else:
        settings = {"num_classes": description.get("num_classes") or None, **description.get("model_args", {})}
        size = settings.get("img_size") or description.get("pretrained_cfg", {}).get("input_size")
        settings = {
            name: settings[name] for name in (*_FIXED_SETTINGS, *_SHAPE_SETTINGS) if settings.get(name) is not None
        }
    if size is not None:
        if not isinstance(size, list) or not all(isinstance(each, int) for each in size) or len(size) not in (2, 3):
            raise WeightsError(f"expected the input's size (frames, bins) in config.json, found {size}")
        settings["size"] = tuple(size[-2:])
    return settings


def _pooling(description: Mapping[str, Any], default: Pooling) -> Pooling:
    key, known = ("pooling", _POOLING_OF_AUDIOMOSAIC)
    if "architecture" in description:
        key, known = ("global_pool", _POOLING_OF_TIMM)
    if key not in description:
        return default
    if description[key] not in known:
        raise WeightsError(f"expected {key} {' or '.join(known)} in config.json, found {description[key]!r}")
    return known[description[key]]


def _check_settings(found: Mapping[str, Any], config: ASTConfig, has_head: bool) -> None:
    """Raise WeightsError if `config.json` contradicts the tensors or has a setting that `AST` lacks."""
    expected = {
        **_FIXED_SETTINGS,
        "embed_dim": config.width,
        "depth": config.depth,
        "pre_norm": config.input_norm,
        "patch_size": [config.patch_time, config.patch_freq],
        "size": (config.num_frames, config.num_mel_bins),
    }
    if has_head:
        expected["num_classes"] = config.num_classes
    for name, value in expected.items():
        theirs = found.get(name, value)
        if name == "patch_size" and isinstance(theirs, int):
            theirs = [theirs, theirs]
        if theirs != value:
            raise WeightsError(
                f"expected {name} {value} in config.json, as its tensors have or as the model needs, found {theirs}"
            )
