"""Detect the config of weights from their description or, without one, from their tensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ast_model.config import ASTConfig, flag_of
from ast_model.model import fixed_positions
from ast_model.pretrained import hugging_face
from ast_model.pretrained.published import PUBLISHED, STRIDES, published_shapes
from pipeline.errors import ConfigError, WeightsError

Weights = dict[str, Tensor]
"""Tensors under the names of `AST`."""

HEAD_WIDTH = 64
"""Width of each attention head in DeiT, AST, EAT and AudioMosaic; the tensors alone do not tell the number of heads."""
_STRUCTURE = ("post_norm", "num_extra_tokens", "fixed_positions", "patch_norm", "input_norm")
_STRUCTURE_OF_HEAD = ("final_norm", "pooling")


def read_description(description: Mapping[str, Any]) -> ASTConfig | None:
    """Return the config in a checkpoint's description, or None for descriptions of other models, such as DeiT."""
    try:
        if description.get("model_type") == hugging_face.MODEL_TYPE:
            return hugging_face.read_config(description)
        return ASTConfig(**description["model"]) if "model" in description else None
    except (TypeError, ConfigError) as error:
        raise WeightsError(f"expected a description of an AST next to the weights, found: {error}") from error


def describe_eat(weights: Weights, depth: int, positions: Tensor | None) -> ASTConfig:
    """Return the config of an EAT, from its tensors alone.

    positions: EAT's fixed positions, if the checkpoint contains them.
    Raises WeightsError for data2vec's image models, which have the same tensor names.
    """
    width, num_classes = weights["class_token"].shape[2], len(weights.get("head.linear.weight", ()))
    lengths = {data.num_classes: data.num_frames for data in PUBLISHED}
    config = ASTConfig.eat(
        num_classes=num_classes or ASTConfig.num_classes,
        num_frames=lengths.get(num_classes, ASTConfig.num_frames),
        width=width,
        depth=depth,
        num_heads=max(1, width // HEAD_WIDTH),
    )
    if positions is not None:
        num_freq = config.grid[0]
        grid = (num_freq, positions.shape[1] // num_freq)
        expected = fixed_positions(config, grid)[0, config.num_extra_tokens :].unflatten(0, grid).transpose(0, 1)
        # Checkpoints in half precision round the positions by up to 5e-4.
        expected_PD = expected.flatten(0, 1)
        if positions.shape[1] % num_freq or not torch.allclose(positions[0].float(), expected_PD, atol=2e-3):
            raise WeightsError(
                f"expected the fixed positions of an EAT with {num_freq} rows, found {positions.shape[1]} other"
                " positions: an image model, or a model with learned positions?"
            )
    return config


def check_eat_description(description: Mapping[str, Any], config: ASTConfig) -> None:
    """Raise WeightsError if the `config.json` of an EAT on the hub contradicts its tensors or another fixed setting."""
    if description.get("model_type") != "eat":
        return
    expected = {
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "patch_size": config.patch_freq,
        "stride": config.freq_stride,
        "mel_bins": config.num_mel_bins,
        "mlp_ratio": config.mlp_ratio,
        "norm_eps": config.norm_eps,
    }
    for name, value in expected.items():
        if (found := description.get(name, value)) != value:
            raise WeightsError(
                f"expected {name} {value} in config.json, as its tensors have or as EAT needs, found {found}"
            )


def check_structure(found: ASTConfig, expected: ASTConfig, has_head: bool) -> None:
    """Raise WeightsError unless both configs have the same kind of blocks, tokens and positions.

    has_head: also compare the pooled tokens and the final norm, which pre-trained weights leave open.
    """
    differing = [
        f"{flag_of(f'model.{name}')} {getattr(found, name)} (here {getattr(expected, name)})"
        for name in _STRUCTURE + (_STRUCTURE_OF_HEAD if has_head else ())
        if getattr(found, name) != getattr(expected, name)
    ]
    if differing:
        raise WeightsError(
            f"the weights belong to another kind of model: {', '.join(differing)}. Use these settings (the presets"
            " audioset_eat and audioset_modern, and finetune.py --size, have EAT's and AudioMosaic's), or start from"
            " other weights"
        )


def find_source_config(weights: Weights, depth: int, described: ASTConfig | None) -> ASTConfig | None:
    """Return the described config or, without a description, the published shape that fits the tensors, or None."""
    if "head.linear.weight" not in weights:
        return None
    num_classes = len(weights["head.linear.weight"])
    if described:
        return dataclasses.replace(described, num_classes=num_classes)
    width = weights["class_token"].shape[2]
    shape = ASTConfig(num_classes, width=width, depth=depth, num_heads=max(1, width // HEAD_WIDTH))
    num_tokens = weights["positions"].shape[1]
    return next((config for config in published_shapes(shape) if config.num_tokens == num_tokens), None)


def raise_unknown_shape(weights: Weights) -> NoReturn:
    """Raise ConfigError that explains how to load weights of an unknown shape."""
    if "head.linear.weight" not in weights:
        raise ConfigError("these weights have no head of an AST, so the model's config must be given")
    num_patches = weights["positions"].shape[1] - ASTConfig.num_extra_tokens
    raise ConfigError(
        f"expected positions of a published length (1024, 512 or 128 frames) and stride ({', '.join(map(str, STRIDES))}"
        f"), found {num_patches} patches and no config.json. Load the weights once with their shape,"
        " load_pretrained(source, ASTConfig(…)), and save them with export_safetensors, which stores the shape"
    )
