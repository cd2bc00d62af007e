"""Weights from elsewhere: ours, the official AST's, Hugging Face's, EAT's, or DeiT's, made to fit a config."""

import dataclasses
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ast_model.config import ASTConfig, Grid, flag_of
from ast_model.model import AST, adapt_positions, fixed_positions
from ast_model.pretrained import hugging_face
from ast_model.pretrained.layouts import EAT, EAT_POSITIONS, Names, find_layout, from_layout
from ast_model.pretrained.metadata import find_labels
from ast_model.pretrained.published import PUBLISHED, STRIDES, published_shapes
from ast_model.pretrained.weight_files import WeightFile, read_weights
from pipeline.errors import ConfigError, WeightsError

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]

_WIDTH_OF_DEITS_HEADS = 64


def load_pretrained(source: str | Path, config: ASTConfig | None = None, labels: Sequence[str] | None = None) -> AST:
    """Return a model with the weights that `source` holds, adapted to `config`; what was adapted is logged.

    source: a file (.pth, .bin or .safetensors), a folder, the address of one in a store, or a name on the Hugging Face
    hub. It may hold our own checkpoint, the official AST, Hugging Face's, a fairseq checkpoint of EAT or SSLAM,
    or a distilled DeiT.
    config: without it the model is shaped as the source. An AST's own epsilons, where they are known, stay with it.
    labels: names of the classes. The head's rows are picked by them if the source has all of them too; if it has
    others, the head is new. Official `.pth` files name none, but have the known order of their data set, if the number
    of classes and the length are its own; other weights without names keep their head if the number of classes fits.
    Raises WeightsError, naming the tensor, its expected and its found shape, if they don't fit.
    """
    return fit_weights(read_weights(source), source, config, labels)


def fit_weights(
    file: WeightFile, source: str | Path, config: ASTConfig | None = None, labels: Sequence[str] | None = None
) -> AST:
    """Do `load_pretrained` with a file that was read; `source` names it in messages."""
    with _naming(source):
        model, notes = _fit(file, config, labels)
    log.info("loaded %s: %s", source, "; ".join(notes))
    return model


def check_weights(source: str | Path, config: ASTConfig) -> None:
    """Raise WeightsError unless `load_pretrained` makes a model of this shape from `source`."""
    with _naming(source):
        _fit(read_weights(source), config, None)


@contextmanager
def _naming(source: str | Path) -> Iterator[None]:
    try:
        yield
    except WeightsError as error:
        raise error if str(source) in str(error) else WeightsError(f"{source}: {error}") from error


def _fit(file: WeightFile, config: ASTConfig | None, labels: Sequence[str] | None) -> tuple[AST, list[str]]:
    tensors, described = file.tensors, _read_description(file.description)
    layout, prefix = find_layout(tensors)
    depth = layout.count_blocks(tensors, prefix)
    names = {
        ours: theirs
        for ours, theirs in layout.tensor_names(depth, prefix).items()
        if ours not in layout.optional or theirs[0] in tensors
    }
    _check_names(tensors, names, {start for unused in layout.unused for start in (unused, prefix + unused)})
    weights = from_layout(tensors, names)
    if layout is EAT:
        described = _describe_eat(weights, depth, tensors.get(prefix + EAT_POSITIONS))
        weights["patch_embedding.weight"] = weights["patch_embedding.weight"].transpose(2, 3)  # of (time, frequency)
    source_config = _source_config(weights, depth, described)
    config = config or source_config or _refuse_unknown_shape(weights)
    if depth != config.depth or (described and described.num_heads != config.num_heads):
        found = f"{depth} blocks" + (f" of {described.num_heads} heads" if described else "")
        raise WeightsError(f"expected {config.depth} blocks of {config.num_heads} heads, found {found}")
    _check_structure(described or ASTConfig(), config)
    if described:
        config = dataclasses.replace(config, norm_eps=described.norm_eps, head_norm_eps=described.head_norm_eps)
    notes = [
        layout.title,
        *_match_head(weights, find_labels(file, source_config), labels),
        *_adapt(weights, described, config),
    ]
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


def _describe_eat(weights: Weights, depth: int, positions: Tensor | None) -> ASTConfig:
    """Return the config of an EAT, whose file states none that is read. Raises WeightsError for another model.

    data2vec's models of images have the same names.
    """
    width, num_classes = weights["class_token"].shape[2], len(weights.get("head.linear.weight", ()))
    lengths = {data.num_classes: data.num_frames for data in PUBLISHED}
    config = ASTConfig.eat(
        num_classes=num_classes or ASTConfig.num_classes,
        num_frames=lengths.get(num_classes, ASTConfig.num_frames),
        width=width,
        depth=depth,
        num_heads=max(1, width // _WIDTH_OF_DEITS_HEADS),
    )
    if positions is not None:
        num_freq = config.grid[0]
        grid = (num_freq, positions.shape[1] // num_freq)
        expected = fixed_positions(config, grid)[0, config.num_extra_tokens :].unflatten(0, grid).transpose(0, 1)
        # Half precision, in which they may have been kept, rounds by 5e-4.
        if positions.shape[1] % num_freq or not torch.allclose(positions[0], expected.flatten(0, 1), atol=2e-3):
            raise WeightsError(
                f"expected the positions of an EAT, sines and cosines of {num_freq} rows, found"
                f" {positions.shape[1]} others: a model of images, or one that learned its positions?"
            )
    return config


def _check_structure(found: ASTConfig, expected: ASTConfig) -> None:
    """Raise WeightsError unless both have the same kind of blocks, tokens and positions."""
    differing = [
        f"{flag_of(f'model.{name}')} {getattr(found, name)} (here {getattr(expected, name)})"
        for name in ("post_norm", "num_extra_tokens", "fixed_positions")
        if getattr(found, name) != getattr(expected, name)
    ]
    if differing:
        raise WeightsError(
            f"these weights are of another kind of model: {', '.join(differing)}; give the model these settings, as the"
            " preset audioset_eat and finetune.py --size eat have EAT's, or start from other weights"
        )


def _source_config(weights: Weights, depth: int, described: ASTConfig | None) -> ASTConfig | None:
    """Return the config of an AST, if need be going by its tensors, as far as published shapes go."""
    if "head.linear.weight" not in weights:
        return None
    num_classes = len(weights["head.linear.weight"])
    if described:
        return dataclasses.replace(described, num_classes=num_classes)
    width = weights["class_token"].shape[2]
    shape = ASTConfig(num_classes, width=width, depth=depth, num_heads=max(1, width // _WIDTH_OF_DEITS_HEADS))
    num_tokens = weights["positions"].shape[1]
    return next((config for config in published_shapes(shape) if config.num_tokens == num_tokens), None)


def _refuse_unknown_shape(weights: Weights) -> NoReturn:
    if "head.linear.weight" not in weights:
        raise ConfigError("these weights have no head of an AST, so the model's config must be given")
    num_patches = weights["positions"].shape[1] - ASTConfig.num_extra_tokens
    raise ConfigError(
        f"expected positions of a published length (1024, 512 or 128 frames) and stride ({', '.join(map(str, STRIDES))}"
        f"), found {num_patches} patches and no config.json. Load them once with their shape, load_pretrained(source, "
        "ASTConfig(…)), and write them with export_safetensors, which keeps it"
    )


def _match_head(weights: Weights, found: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """Give the head the rows of `labels`, in place, or drop one that is of other classes; return what was done.

    found: names of the head's rows, as far as they are known.
    """
    if not labels or not found or list(found) == list(labels) or "head.linear.weight" not in weights:
        return []
    row_of = {name: row for row, name in enumerate(found)}
    if set(labels) <= row_of.keys():
        rows = [row_of[name] for name in labels]
        for name in ("head.linear.weight", "head.linear.bias"):
            weights[name] = weights[name][rows]
        return [f"the head's {len(rows)} classes picked from {len(found)} by name"]
    _drop_head(weights)
    return [f"the head left out, as its {len(found)} classes are different ones"]


def _drop_head(weights: Weights) -> None:
    for name in [name for name in weights if name.startswith("head.")]:
        del weights[name]


def _adapt(weights: Weights, described: ASTConfig | None, config: ASTConfig) -> list[str]:
    """Adapt positions, patches and head in place; return what was done."""
    notes = []
    if config.fixed_positions:
        weights.pop("positions", None)  # an ONNX file has them, as a constant
    elif (grid := _find_grid(weights, described, config)) != config.grid:
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
    num_patches = weights["positions"].shape[1] - config.num_extra_tokens
    side, num_rows = math.isqrt(num_patches), config.grid[0]
    published = [shape.grid for shape in published_shapes(ASTConfig())]
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
    if missing := [name for name in expected if name not in weights and not name.startswith("head.")]:
        raise WeightsError(f"expected a tensor {missing[0]}, found none ({len(missing)} tensors are missing)")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"of shape {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
            raise WeightsError(f"expected {' + '.join(names[name])} {shapes}")
