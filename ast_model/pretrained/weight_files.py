"""Read the tensors of a checkpoint together with the JSON files next to them."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ast_model.pretrained.tensor_files import read_tensors
from ast_model.pretrained.weight_sources import (
    DESCRIPTION_FILES,
    FEATURES_FILE,
    fetch_from_hub,
    fetch_from_store,
    find_weights,
    locate_weights,
)
from pipeline.errors import WeightsError

CONFIG_KEY = "ast_config"
"""Header key of the model's config in exported safetensors, so that the file is complete without a config.json."""
METADATA_KEY = "metadata"
"""Header key of the classes, the normalisation and the loss."""


@dataclass(frozen=True)
class WeightFile:
    """Tensors under their original names, with the description of the model."""

    tensors: dict[str, Tensor]
    description: Mapping[str, Any] = field(default_factory=dict)
    """Content of the header, of `checkpoint.json` or of `config.json`; empty without a description."""
    features: Mapping[str, Any] = field(default_factory=dict)
    """Content of `preprocessor_config.json`, the front end of a Hugging Face model."""


def read_weights(source: str | Path) -> WeightFile:
    """Read tensors and description from a source; see `load_pretrained`. Raises WeightsError."""
    located = locate_weights(source)
    if "://" in located:
        with tempfile.TemporaryDirectory() as folder:
            return _read_local(fetch_from_store(located, Path(folder)))
    return _read_local(Path(located) if Path(located).is_absolute() else fetch_from_hub(located))


def _read_local(path: Path) -> WeightFile:
    file = find_weights(path)
    tensors, header = read_tensors(file)
    features = file.parent / FEATURES_FILE
    return WeightFile(tensors, _find_description(file, header), _read_json(features) if features.exists() else {})


def _find_description(file: Path, header: Mapping[str, str]) -> Mapping[str, Any]:
    if CONFIG_KEY in header:
        metadata = {METADATA_KEY: json.loads(header[METADATA_KEY])} if METADATA_KEY in header else {}
        return {"model": json.loads(header[CONFIG_KEY]), **metadata}
    # Ignore JSON files next to an official .pth, which has no description of its own.
    for name in DESCRIPTION_FILES if file.suffix in (".safetensors", ".bin") else ():
        if (file.parent / name).exists():
            return _read_json(file.parent / name)
    return {}


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise WeightsError(f"expected JSON in {file}, found: {error}") from error
