"""Load weights of an AST, EAT, AudioMosaic, AudioMAE or DeiT into a model, adapted to its config."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ast_model.config import ASTConfig
from ast_model.model import AST
from ast_model.pretrained.adapt import adapt_weights, check_names, check_shapes, convert_to_float, match_head
from ast_model.pretrained.audio_vit import describe_audio_vit, order_by_frequency
from ast_model.pretrained.detect import (
    check_eat_description,
    check_structure,
    describe_eat,
    find_source_config,
    raise_unknown_shape,
    read_description,
)
from ast_model.pretrained.layouts import AUDIO_VIT, EAT, EAT_HUB, EAT_POSITIONS, find_layout, from_layout
from ast_model.pretrained.metadata import find_labels
from ast_model.pretrained.weight_files import WeightFile, read_weights
from pipeline.errors import WeightsError

log = logging.getLogger(__name__)


def load_pretrained(source: str | Path, config: ASTConfig | None = None, labels: Sequence[str] | None = None) -> AST:
    """Build a model with the weights of `source`, adapted to `config`. Logs each adaptation.

    source: a file (.pth, .bin, .safetensors or .onnx), a folder, an address in a store, or a name on the Hugging Face
        hub. Accepts checkpoints of this project, of the official AST, of transformers' AST, of EAT (fairseq files and
        hub folders), SSLAM, AudioMosaic and AudioMAE (timm's layout), and distilled DeiTs. Python files in a folder
        are never executed.
    config: shape of the model; by default the shape of the weights. The epsilons of described weights always apply.
    labels: names of the classes. If the weights name all of them, the head's rows are selected by name, otherwise the
        head is new. Official `.pth` files name no classes, but their order is known from the number of classes and
        the length. Other weights without names keep their head if the number of classes fits.

    Raises WeightsError, naming the tensor with its expected and found shape, if the weights do not fit.

    >>> from tempfile import TemporaryDirectory
    >>> from ast_model.export import export_safetensors
    >>> with TemporaryDirectory() as folder:
    ...     file = Path(folder, "ast.safetensors")
    ...     export_safetensors(AST(ASTConfig.nano(num_classes=3)), file)
    ...     model = load_pretrained(file)
    ...     shorter = load_pretrained(file, ASTConfig.nano(num_classes=3, num_frames=256))
    >>> model.config.num_frames, shorter.config.num_frames
    (1024, 256)
    """
    return fit_weights(read_weights(source), source, config, labels)


def fit_weights(
    file: WeightFile, source: str | Path, config: ASTConfig | None = None, labels: Sequence[str] | None = None
) -> AST:
    """Do the work of `load_pretrained` for weights in memory. `source` names them in messages."""
    with _name_in_errors(source):
        model, notes = _fit(file, config, labels)
    log.info("loaded %s: %s", source, "; ".join(notes))
    return model


def check_weights(source: str | Path, config: ASTConfig) -> None:
    """Raise WeightsError unless `load_pretrained(source, config)` succeeds."""
    with _name_in_errors(source):
        _fit(read_weights(source), config, None)


@contextmanager
def _name_in_errors(source: str | Path) -> Iterator[None]:
    try:
        yield
    except WeightsError as error:
        raise error if str(source) in str(error) else WeightsError(f"{source}: {error}") from error


def _fit(file: WeightFile, config: ASTConfig | None, labels: Sequence[str] | None) -> tuple[AST, list[str]]:
    """Build the model. Return it with a note per adaptation."""
    tensors, described = file.tensors, read_description(file.description)
    layout, prefix = find_layout(tensors)
    depth = layout.count_blocks(tensors, prefix)
    names = {
        ours: theirs
        for ours, theirs in layout.tensor_names(depth, prefix).items()
        if ours not in layout.optional or theirs[0] in tensors
    }
    ignored = {start for unused in layout.unused for start in (unused, prefix + unused)}
    check_names(tensors, names, ignored, layout.optional)
    weights = convert_to_float(from_layout(tensors, names), names)
    if layout in (EAT, EAT_HUB):
        positions = next((tensor for name, tensor in tensors.items() if name.endswith(EAT_POSITIONS)), None)
        described = describe_eat(weights, depth, positions)
        check_eat_description(file.description, described)
        weights["patch_embedding.weight"] = weights["patch_embedding.weight"].transpose(2, 3)  # EAT's is (time, mel)
    elif layout is AUDIO_VIT:
        described = describe_audio_vit(weights, depth, file.description)
        order_by_frequency(weights, described)
    source_config = find_source_config(weights, depth, described)
    config = config or source_config or raise_unknown_shape(weights)
    if depth != config.depth or (described and described.num_heads != config.num_heads):
        found = f"{depth} blocks" + (f" of {described.num_heads} heads" if described else "")
        raise WeightsError(f"expected {config.depth} blocks of {config.num_heads} heads, found {found}")
    check_structure(described or ASTConfig(), config, has_head="head.linear.weight" in weights)
    if described:
        config = dataclasses.replace(config, norm_eps=described.norm_eps, head_norm_eps=described.head_norm_eps)
    notes = [
        layout.title,
        *match_head(weights, find_labels(file, source_config), labels),
        *adapt_weights(weights, described, config),
    ]
    model = AST(config)
    check_shapes(weights, model, names)
    model.load_state_dict(weights, strict=False)
    return model, notes
