"""Read tensors from safetensors, PyTorch and ONNX files, detected by their first bytes, without running their code."""

import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import WeightsError

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that torch adds to all names of a parallel or compiled model."""
_CONFIG_TYPES = (
    "argparse.Namespace collections.defaultdict typing.Any builtins.dict builtins.list builtins.str builtins.int"
    " builtins.float builtins.bool"
).split()
"""Types of the standard library that a pickled config may refer to."""
_NESTS = ("model", "state_dict")
"""Keys that hold the tensors in checkpoints with further content."""


def read_tensors(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Read the named tensors of a file, and the strings in its header. Raises WeightsError for invalid content."""
    content, header = _read_file(file)
    return _unwrap(content, file), header


def _read_file(file: Path) -> tuple[Any, Mapping[str, str]]:
    with file.open("rb") as stream:
        start = stream.read(16)
    try:
        if start[8:9] == b"{":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        if start.startswith((b"PK", b"\x80")):
            return _read_pytorch(file), {}
        if start.startswith(b"\x08") and file.suffix == ".onnx":
            return _read_onnx(file)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} is damaged, or contains more than tensors, which could run foreign code and is never unpickled: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{file} is truncated or damaged ({error}); download it again") from error
    found = {b"<": "a web page", b"v": "a Git LFS pointer"}.get(start[:1], f"a file that starts with {start!r}")
    raise WeightsError(f"expected a PyTorch or safetensors file in {file}, found {found}; download it again")


class _Placeholder:
    """Replaces objects of external classes in a checkpoint, such as fairseq's config. Ignores all arguments."""

    def __new__(cls, *values: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _placeholder_dict(*values: Any) -> dict[Any, Any]:
    """Replace an external dict type, because torch's restricted reader sets items only on Python's own dicts."""
    return {}


def _read_pytorch(file: Path) -> Any:
    """Load a PyTorch file with torch's restricted reader. Objects of external config classes become placeholders.

    Raises UnpicklingError for types of the standard library other than `_CONFIG_TYPES`.
    """
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file) if zipfile.is_zipfile(file) else []
    placeholders: list[Any] = [
        (_placeholder_dict if name == "collections.defaultdict" else _Placeholder, name)
        for name in foreign
        if name in _CONFIG_TYPES or name.split(".")[0] not in sys.stdlib_module_names
    ]
    with torch.serialization.safe_globals(placeholders):
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_onnx(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Read an ONNX file exported by this project, which preserves the names of the tensors."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise WeightsError(f"{file} needs a missing package ({error}): pip install '.[onnx]'") from error
    try:
        model = onnx.load(file)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    tensors = {each.name: torch.from_numpy(onnx.numpy_helper.to_array(each).copy()) for each in model.graph.initializer}
    return tensors, {each.key: each.value for each in model.metadata_props}


def _unwrap(content: Any, file: Path) -> dict[str, Tensor]:
    for key in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise WeightsError(f"expected named tensors in {file}, found a {type(content).__name__}")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors
