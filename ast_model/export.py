"""Export a model as a Hugging Face folder, a safetensors file, or ONNX.

Each export is written to a temporary path, read back, compared with the model, and only then renamed.
"""

import copy
import dataclasses
import json
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ast_model.model import AST
from ast_model.pretrained.hugging_face import describe_config, describe_features, fits_hugging_face
from ast_model.pretrained.layouts import HUGGING_FACE, to_layout
from ast_model.pretrained.load import load_pretrained
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.pretrained.weight_files import CONFIG_KEY, METADATA_KEY
from pipeline.errors import ConfigError, CorruptError, InputError, MismatchError

LOGITS_TOLERANCE = 1e-4
"""Maximum error of exported logits: absolute up to 1, relative above 1."""
CARD_FILE = "README.md"
_HUGGING_FACE_PREFIX = "audio_spectrogram_transformer."


def export_hugging_face(model: AST, metadata: ModelMetadata, folder: Path, card: str = "") -> None:
    """Write a folder that transformers' AutoModelForAudioClassification and AutoFeatureExtractor load.

    card: content of README.md; default: no card. The logits equal the model's, while the embeddings are smaller by a
    constant factor (see `_with_one_epsilon`).
    """
    original = _ready(model)
    model = _with_one_epsilon(original)
    _check_labels(metadata.labels, model.config.num_classes)
    config = describe_config(model.config, metadata.labels, metadata.loss)
    features = describe_features(model.config, metadata.mean, metadata.std)
    tensors = to_layout(model.state_dict(), HUGGING_FACE, model.config.depth, _HUGGING_FACE_PREFIX)
    with _published(folder) as aside:
        aside.mkdir()
        save_file(tensors, aside / "model.safetensors", {"format": "pt"})
        (aside / "config.json").write_text(json.dumps(config, indent=2))
        (aside / "preprocessor_config.json").write_text(json.dumps(features, indent=2))
        if card:
            (aside / CARD_FILE).write_text(card, encoding="utf-8")
        _check_read_back(model, original, aside)


def export_folder(model: AST, metadata: ModelMetadata, folder: Path, card: str) -> None:
    """Write a folder for the hub: transformers' format if its AST supports the shape, otherwise our safetensors."""
    if fits_hugging_face(model.config):
        export_hugging_face(model, metadata, folder, card)
        return
    model = _ready(model)
    with _published(folder) as aside:
        aside.mkdir()
        save_file(model.state_dict(), aside / "model.safetensors", _header(model, metadata))
        (aside / CARD_FILE).write_text(card, encoding="utf-8")
        _check_read_back(model, model, aside)


def export_safetensors(model: AST, file: Path, metadata: ModelMetadata | None = None) -> None:
    """Write a single safetensors file that `Tagger.load` can read. Its header holds the config and the metadata."""
    model = _ready(model)
    with _published(file) as aside:
        save_file(model.state_dict(), aside, _header(model, metadata))
        _check_read_back(model, model, aside)


def _header(model: AST, metadata: ModelMetadata | None) -> dict[str, str]:
    header = {"format": "pt", CONFIG_KEY: json.dumps(asdict(model.config))}
    if metadata is not None:
        _check_labels(metadata.labels, model.config.num_classes)
        header[METADATA_KEY] = json.dumps(asdict(metadata))
    return header


def export_onnx(model: AST, metadata: ModelMetadata, file: Path) -> None:
    """Write an ONNX file from normalised `fbank` (batch, num_frames, num_mel_bins) to `logits` (batch, num_classes).

    The batch size is dynamic. The file's metadata contains labels, mean and std as JSON. `Tagger.load` reads the file.
    """
    model = _ready(model)
    _check_labels(metadata.labels, model.config.num_classes)
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401 # pyright: ignore[reportMissingImports] - torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"ONNX needs packages that are not installed ({error}): pip install '.[onnx]'") from error
    with _published(file) as aside:
        program = _trace(model)
        props = {**asdict(metadata), METADATA_KEY: asdict(metadata), CONFIG_KEY: asdict(model.config)}
        program.model.metadata_props.update({name: json.dumps(value) for name, value in props.items()})
        program.save(aside)
        session = onnxruntime.InferenceSession(aside, providers=["CPUExecutionProvider"])
        for batch_size in (1, 3):
            fbank_BTM = _draw_fbank(model, batch_size)
            found = session.run(["logits"], {"fbank": fbank_BTM.numpy()})[0]
            _check_logits(model(fbank_BTM), torch.from_numpy(found), aside)
        _check_read_back(model, model, aside)


def _with_one_epsilon(model: AST) -> AST:
    """Return a model with equal logits whose head has the blocks' epsilon, as Hugging Face's AST requires.

    LayerNorm(a·x) with epsilon a²·eps equals LayerNorm(x) with epsilon eps. The function therefore scales the output of
    the preceding LayerNorm by a, which is 1/√10 for the paper's epsilons of 1e-6 and 1e-5.
    """
    config = dataclasses.replace(model.config, head_norm_eps=model.config.norm_eps)
    factor = math.sqrt(config.norm_eps / model.config.head_norm_eps)
    changed = AST(config).eval().requires_grad_(False)
    changed.load_state_dict(model.state_dict())
    assert isinstance(changed.norm, nn.LayerNorm), "Hugging Face's AST has a final norm"
    changed.norm.weight.mul_(factor)
    changed.norm.bias.mul_(factor)
    return changed


def _trace(model: AST) -> Any:
    # Export with two clips, because torch would turn a batch of one into a constant. Silence its warnings, which
    # concern its own code and optional packages.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        return torch.onnx.export(
            model,
            (_draw_fbank(model, 2),),
            input_names=["fbank"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            optimize=False,  # keep the names and shapes of tensors; runtimes optimise the graph themselves
            verbose=False,
        )


def _ready(model: AST) -> AST:
    return copy.deepcopy(model).cpu().float().eval().requires_grad_(False)


def _check_labels(labels: Sequence[str], num_classes: int) -> None:
    if len(labels) != num_classes:
        raise MismatchError(f"expected {num_classes} labels, one per class of the model, found {len(labels)}")
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise InputError(f"expected distinct labels, found {twice!r} twice; rename one")


@contextmanager
def _published(target: Path) -> Iterator[Path]:
    """Yield a temporary path on the same disk, which becomes `target` unless an error occurs."""
    if target.exists():
        raise InputError(f"{target} exists already; remove it, or choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder / target.name
        (folder / target.name).replace(target)
    finally:
        shutil.rmtree(folder)


def _check_read_back(written: AST, original: AST, path: Path) -> None:
    loaded, expected = load_pretrained(path).eval(), written.state_dict()
    for name, tensor in loaded.state_dict().items():
        if not torch.equal(tensor, expected[name]):
            raise CorruptError(f"{path.name}: expected the written values of {name}, found different values; try again")
    fbank_BTM = _draw_fbank(original, 2)
    with torch.inference_mode():
        _check_logits(original(fbank_BTM), loaded(fbank_BTM), path)


def _check_logits(expected_BC: Tensor, found_BC: Tensor, path: Path) -> None:
    difference = float(((expected_BC - found_BC).abs() / expected_BC.abs().clamp(min=1)).max())
    if not difference <= LOGITS_TOLERANCE:  # also true for NaN
        raise CorruptError(
            f"{path.name}: expected logits within {LOGITS_TOLERANCE} of the model's, found {difference:.1e}"
        )


def _draw_fbank(model: AST, batch_size: int) -> Tensor:
    shape = (batch_size, model.config.num_frames, model.config.num_mel_bins)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) / 2
