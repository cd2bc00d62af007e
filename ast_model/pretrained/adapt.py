"""Adapt weights to a config: head, positions and patches; check the names and shapes of tensors."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ast_model.config import ASTConfig, Grid
from ast_model.model import AST, adapt_positions
from ast_model.pretrained.detect import Weights
from ast_model.pretrained.layouts import Names
from ast_model.pretrained.published import published_shapes
from pipeline.errors import WeightsError

FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def match_head(weights: Weights, found: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """Select the head's rows of the given classes, in place, or drop a head of other classes. Return notes.

    found: class names of the head's rows, empty if unknown.
    """
    if not labels or not found or list(found) == list(labels) or "head.linear.weight" not in weights:
        return []
    row_of = {name: row for row, name in enumerate(found)}
    if set(labels) <= row_of.keys():
        rows = [row_of[name] for name in labels]
        for name in ("head.linear.weight", "head.linear.bias"):
            weights[name] = weights[name][rows]
        return [f"{len(rows)} of the head's {len(found)} classes selected by name"]
    _drop_head(weights)
    return [f"head dropped, because its {len(found)} classes differ"]


def _drop_head(weights: Weights) -> None:
    for name in [name for name in weights if name.startswith("head.")]:
        del weights[name]


def adapt_weights(weights: Weights, described: ASTConfig | None, config: ASTConfig) -> list[str]:
    """Adapt positions, patches and head to the config, in place. Return notes."""
    notes = []
    if config.fixed_positions:
        weights.pop("positions", None)  # ONNX files contain them as a constant
    elif (grid := _find_grid(weights, described, config)) != config.grid:
        weights["positions"] = adapt_positions(weights["positions"], grid, config.grid)
        notes.append(f"positions adapted from {grid[0]}×{grid[1]} to {config.grid[0]}×{config.grid[1]}")
    if _has_colours(weights):
        weights["patch_embedding.weight"] = weights["patch_embedding.weight"].sum(dim=1, keepdim=True)
        notes.append("patch weights summed over the colours")
    if not config.final_norm and weights.pop("norm.weight", None) is not None:
        del weights["norm.bias"]
        notes.append("final norm dropped, as in the fine-tuning of these weights")
    num_classes = len(weights.get("head.linear.weight", ()))
    if num_classes != config.num_classes:
        if num_classes:
            _drop_head(weights)
        notes.append(f"new head for {config.num_classes} classes, because the weights have {num_classes or 'none'}")
    return notes


def _find_grid(weights: Weights, described: ASTConfig | None, config: ASTConfig) -> Grid:
    """Return the grid of patches of the positions.

    Without a description, image models have a square grid, and an AST has the grid of `config`, a published one, or
    one with as many rows as `config`.
    """
    num_patches = weights["positions"].shape[1] - config.num_extra_tokens
    side, num_rows = math.isqrt(num_patches), config.grid[0]
    published = [shape.grid for shape in published_shapes(ASTConfig())]
    if described:
        candidates = [described.grid]
    elif _has_colours(weights):
        candidates = [(side, side)]
    else:
        candidates = [config.grid, *published, (num_rows, num_patches // num_rows)]
    for grid in candidates:
        if grid[0] * grid[1] == num_patches:
            return grid
    expected = " or ".join(f"{freq}×{time}" for freq, time in candidates)
    raise WeightsError(f"expected positions for {expected} patches, found positions for {num_patches}")


def _has_colours(weights: Weights) -> bool:
    """Return True for an image model, whose patches have three channels."""
    return weights["patch_embedding.weight"].shape[1] == 3


def check_names(
    tensors: Mapping[str, Tensor], names: Mapping[str, Names], unused: Iterable[str], optional: Names = ()
) -> None:
    """Raise WeightsError for a missing or an unknown tensor. The head may be absent as a whole.

    names: the layout's names for each tensor of the model.
    unused: prefixes of tensors to ignore.
    optional: tensors of the model that may exist without the rest of the head.
    """
    of_head = {ours for ours in names if ours.startswith("head.") and ours not in optional}
    has_head = any(theirs in tensors for ours in of_head for theirs in names[ours])
    wanted = [name for ours, theirs in names.items() if has_head or ours not in of_head for name in theirs]
    if missing := [name for name in wanted if name not in tensors]:
        raise WeightsError(
            f"expected a tensor {missing[0]}, found none ({len(missing)} tensors are missing); among image models,"
            " only distilled DeiTs fit"
        )
    extra = set(tensors).difference(wanted)
    if unknown := sorted(name for name in extra if not name.startswith(tuple(unused))):
        raise WeightsError(f"expected only tensors of the model, found {unknown[0]} ({len(unknown)} unknown in total)")


def convert_to_float(weights: Weights, names: Mapping[str, Names]) -> Weights:
    """Convert weights to float32. Raises WeightsError for quantised weights and for weights that are not finite."""
    for name, tensor in weights.items():
        found = None
        if tensor.dtype not in FLOAT_TYPES:
            found = f"{str(tensor.dtype).removeprefix('torch.')}: quantised weights lack their scales here"
        elif num_bad := int((~torch.isfinite(tensor)).sum()):
            found = f"{num_bad:,} of {tensor.numel():,} values that are NaN or infinite: did the training diverge?"
        if found:
            raise WeightsError(f"expected finite floats in {' + '.join(names[name])}, found {found}")
    return {name: tensor.float() for name, tensor in weights.items()}


def check_shapes(weights: Weights, model: AST, names: Mapping[str, Names]) -> None:
    """Raise WeightsError if a tensor is missing or has the wrong shape, naming it as in the layout."""
    expected = model.state_dict()
    if missing := [name for name in expected if name not in weights and not name.startswith("head.")]:
        raise WeightsError(f"expected a tensor {missing[0]}, found none ({len(missing)} tensors are missing)")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            shapes = f"of shape {tuple(expected[name].shape)}, found {tuple(tensor.shape)}"
            raise WeightsError(f"expected {' + '.join(names[name])} {shapes}")
