"""Weights from elsewhere: ours, the official AST's, Hugging Face's, or DeiT's, made to fit a config."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ast_model.config import NUM_EXTRA_TOKENS, ASTConfig, Grid
from ast_model.model import AST, adapt_positions
from ast_model.pretrained import hugging_face
from ast_model.pretrained.files import WeightFile, read_weights
from ast_model.pretrained.layouts import Names, find_layout, from_layout
from ast_model.pretrained.metadata import stored_metadata
from pipeline.errors import ConfigError, WeightsError

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]

_PUBLISHED_STRIDES = (10, 12, 14, 16)
"""Of the official AudioSet models, the same along both axes, each for 1,024 frames of 128 bins."""
_WIDTH_OF_DEITS_HEADS = 64


def load_pretrained(source: str | Path, config: ASTConfig | None = None, labels: Sequence[str] | None = None) -> AST:
    """Return a model with the weights that `source` holds, adapted to `config`; what was adapted is logged.

    source: a file (.pth, .bin or .safetensors), a folder, the address of one in a store, or a name on the Hugging Face
    hub. It may hold our own checkpoint, the official AST, Hugging Face's, or a distilled DeiT.
    config: without it the model is shaped as the source. An AST's own epsilons, where they are known, stay with it.
    labels: names of the classes. The head's rows are picked by them if the source names all of them too; if it names
    others, the head is new. Where the source names none, the head stays if the number of classes does.
    Raises WeightsError, naming the tensor, its expected and its found shape, if they don't fit.
    """
    return fit_weights(read_weights(source), source, config, labels)


def fit_weights(
    file: WeightFile, source: str | Path, config: ASTConfig | None = None, labels: Sequence[str] | None = None
) -> AST:
    """Do `load_pretrained` with a file that was read; `source` names it in messages."""
    try:
        model, notes = _fit(file, config, labels)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    log.info("loaded %s: %s", source, "; ".join(notes))
    return model


def _fit(file: WeightFile, config: ASTConfig | None, labels: Sequence[str] | None) -> tuple[AST, list[str]]:
    tensors, described = file.tensors, _read_description(file.description)
    layout, prefix = find_layout(tensors)
    depth = layout.count_blocks(tensors, prefix)
    names = layout.tensor_names(depth, prefix)
    _check_names(tensors, names, {start for unused in layout.unused for start in (unused, prefix + unused)})
    weights = from_layout(tensors, names)
    config = config or _config_of(weights, depth, described)
    if depth != config.depth or (described and described.num_heads != config.num_heads):
        found = f"{depth} blocks" + (f" of {described.num_heads} heads" if described else "")
        raise WeightsError(f"expected {config.depth} blocks of {config.num_heads} heads, found {found}")
    if described:
        config = dataclasses.replace(config, norm_eps=described.norm_eps, head_norm_eps=described.head_norm_eps)
    notes = [layout.title, *_match_head(weights, file, labels), *_adapt(weights, described, config)]
    model = AST(config)
    _check_shapes(weights, model, names)
    model.load_state_dict(weights, strict=False)
    return model, notes


def _read_description(description: Mapping[str, Any]) -> ASTConfig | None:
    """Return the config that a checkpoint says it has; None for other models', such as DeiT's."""
    try:
        if description.get("model_type") == hugging_face.MODEL_TYPE:
            return hugging_face.read_config(description)
        return ASTConfig(**description["model"]) if "model" in description else None
    except (TypeError, ConfigError) as error:
        raise WeightsError(
            f"expected a description of an AST beside the weights, found a wrong one: {error}"
        ) from error


def _config_of(weights: Weights, depth: int, described: ASTConfig | None) -> ASTConfig:
    """Return the config of an AST, if need be going by its tensors, as far as published models go."""
    if "head.linear.weight" not in weights:
        raise ConfigError("these weights have no head of an AST, so the model's config must be given")
    num_classes = len(weights["head.linear.weight"])
    if described:
        return dataclasses.replace(described, num_classes=num_classes)
    width = weights["class_token"].shape[2]
    shape = ASTConfig(num_classes, width=width, depth=depth, num_heads=max(1, width // _WIDTH_OF_DEITS_HEADS))
    for stride in _PUBLISHED_STRIDES:
        config = dataclasses.replace(shape, freq_stride=stride, time_stride=stride)
        if config.num_tokens == weights["positions"].shape[1]:
            return config
    raise ConfigError("these weights don't tell their strides and length, so the model's config must be given")


def _match_head(weights: Weights, file: WeightFile, labels: Sequence[str] | None) -> list[str]:
    """Give the head the rows of `labels`, in place, or drop one that is of other classes; return what was done."""
    described = stored_metadata(file)
    found = list(described.labels) if described else []
    if not labels or not found or found == list(labels) or "head.linear.weight" not in weights:
        return []
    place_of = {name: place for place, name in enumerate(found)}
    if set(labels) <= place_of.keys():
        rows = [place_of[name] for name in labels]
        for name in ("head.linear.weight", "head.linear.bias"):
            weights[name] = weights[name][rows]
        return [f"the head's {len(rows)} classes picked from {len(found)} by name"]
    _drop_head(weights)
    return [f"the head left out, as its {len(found)} classes are others"]


def _drop_head(weights: Weights) -> None:
    for name in [name for name in weights if name.startswith("head.")]:
        del weights[name]


def _adapt(weights: Weights, described: ASTConfig | None, config: ASTConfig) -> list[str]:
    """Adapt positions, patches and head in place; return what was done."""
    notes = []
    grid = _find_grid(weights, described, config)
    if grid != config.grid:
        weights["positions"] = adapt_positions(weights["positions"], grid, config.grid)
        notes.append(f"positions adapted from {grid[0]}×{grid[1]} to {config.grid[0]}×{config.grid[1]}")
    if _is_of_images(weights):
        weights["patch_embedding.weight"] = weights["patch_embedding.weight"].sum(dim=1, keepdim=True)
        notes.append("patch weights summed over the colours")
    num_classes = len(weights.get("head.linear.weight", ()))
    if num_classes != config.num_classes:
        _drop_head(weights)
        notes.append(f"a new head for {config.num_classes} classes, as the weights have {num_classes or 'none'}")
    return notes


def _find_grid(weights: Weights, described: ASTConfig | None, config: ASTConfig) -> Grid:
    """Return the grid that the positions are made for.

    Where no description says it: images are square, and an AST without one has the strides of `config` or is one of
    the published.
    """
    num_patches = weights["positions"].shape[1] - NUM_EXTRA_TOKENS
    side, num_rows = math.isqrt(num_patches), config.grid[0]
    published = [ASTConfig(freq_stride=stride, time_stride=stride).grid for stride in _PUBLISHED_STRIDES]
    if described:
        candidates = [described.grid]
    elif _is_of_images(weights):
        candidates = [(side, side)]
    else:
        candidates = [config.grid, *published, (num_rows, num_patches // num_rows)]
    for grid in candidates:
        if grid[0] * grid[1] == num_patches:
            return grid
    expected = " or ".join(f"{freq}×{time}" for freq, time in candidates)
    raise WeightsError(f"expected positions for {expected} patches, found them for {num_patches}")


def _is_of_images(weights: Weights) -> bool:
    return weights["patch_embedding.weight"].shape[1] == 3


def _check_names(tensors: Mapping[str, Tensor], names: Mapping[str, Names], unused: Iterable[str]) -> None:
    has_head = any(theirs in tensors for ours in names if ours.startswith("head.") for theirs in names[ours])
    wanted = [name for ours, theirs in names.items() if has_head or not ours.startswith("head.") for name in theirs]
    if missing := [name for name in wanted if name not in tensors]:
        count = f"{len(missing)} tensors are missing"
        raise WeightsError(f"expected a tensor {missing[0]}, found none ({count}); of DeiTs only a distilled one fits")
    extra = set(tensors).difference(wanted)
    if unknown := sorted(name for name in extra if not name.startswith(tuple(unused))):
        raise WeightsError(f"found a tensor {unknown[0]} that the model has no place for ({len(unknown)} such in all)")


def _check_shapes(weights: Weights, model: AST, names: Mapping[str, Names]) -> None:
    expected = model.state_dict()
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"of shape {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
            raise WeightsError(f"expected {' + '.join(names[name])} {shapes}")
