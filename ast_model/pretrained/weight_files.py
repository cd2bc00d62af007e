"""Sources of weights: a file, a folder, an address or a name on the Hugging Face hub. Only tensors are read."""

import json
import pickle
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import WeightsError
from pipeline.store.storage import Store

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
DESCRIPTION_FILES = ("checkpoint.json", "config.json")
FEATURES_FILE = "preprocessor_config.json"
CONFIG_KEY = "ast_config"
"""Under it our own safetensors carry the model's config, in case they travel alone."""
METADATA_KEY = "metadata"
"""Under it they carry classes, normalisation and activation."""

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".onnx")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""Not `../folder`."""
_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that torch gives each name when a model is made parallel or compiled."""
_OF_CONFIGS = (
    "argparse.Namespace collections.defaultdict typing.Any builtins.dict builtins.list builtins.str builtins.int"
    " builtins.float builtins.bool"
).split()
"""Of Python's own libraries: the names that a pickled config needs."""
_NESTS = ("model", "state_dict")
"""Keys under which training code keeps the tensors, beside other things."""


@dataclass(frozen=True)
class WeightFile:
    """Tensors under their original names, and the description that lay beside them."""

    tensors: dict[str, Tensor]
    description: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    """Of Hugging Face's models: how the fbank is made."""


def locate_weights(source: str | Path) -> str:
    """Return an absolute path, an address or a hub's name, which any process can open. Raises WeightsError."""
    path = Path(source).expanduser()
    if path.exists():
        return str(path.resolve())
    if "://" in str(source) or _HUB_NAME.fullmatch(str(source)):
        return str(source)
    raise WeightsError(f"expected weights at {path.resolve()}, found nothing there; it is not a name on the hub either")


def read_weights(source: str | Path) -> WeightFile:
    """Read tensors from wherever `source` points; see `pretrained.load_pretrained`. Raises WeightsError."""
    located = locate_weights(source)
    if "://" in located:
        with tempfile.TemporaryDirectory() as folder:
            return _read_local(_fetch_from_store(located, Path(folder)))
    return _read_local(Path(located) if Path(located).is_absolute() else _fetch_from_hub(located))


def _read_local(path: Path) -> WeightFile:
    file = find_weights(path)
    content, header = _read_file(file)
    tensors = {name: tensor.float() for name, tensor in _unwrap(content, file).items()}
    features = file.parent / FEATURES_FILE
    return WeightFile(tensors, _find_description(file, header), _read_json(features) if features.exists() else {})


def _find_description(file: Path, header: Mapping[str, str]) -> Mapping[str, Any]:
    if CONFIG_KEY in header:
        metadata = {METADATA_KEY: json.loads(header[METADATA_KEY])} if METADATA_KEY in header else {}
        return {"model": json.loads(header[CONFIG_KEY]), **metadata}
    # What lies beside an official .pth is not about it.
    for name in DESCRIPTION_FILES if file.suffix in (".safetensors", ".bin") else ():
        if (file.parent / name).exists():
            return _read_json(file.parent / name)
    return {}


def find_weights(path: Path) -> Path:
    """Return the file of weights that a path means: itself, or the one in its folder. Raises WeightsError."""
    if path.is_file():
        return path
    # In a folder, or in the only one in it, as a run's averaged weights lie in `average`.
    for pattern in ("", "*/"):
        found = sorted(file for name in WEIGHT_FILES for file in path.glob(pattern + name))
        if len({file.parent for file in found}) > 1:
            names = ", ".join(file.parent.name for file in found[-3:])
            raise WeightsError(f"expected one checkpoint in {path}, found {len(found)}; name one: {names}")
        if found:
            return min(found, key=lambda file: WEIGHT_FILES.index(file.name))
    names = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    raise WeightsError(f"expected {' or '.join(WEIGHT_FILES)} in {path}, found {names}; give the path of the file")


def _read_file(file: Path) -> tuple[Any, Mapping[str, str]]:
    """Return what the file holds and the strings in its header, going by its first bytes."""
    with file.open("rb") as stream:
        start = stream.read(16)
    try:
        if start[8:9] == b"{":
            with safe_open(file, framework="pt") as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        if start.startswith((b"PK", b"\x80")):
            return _load_tensors(file), {}
        if start.startswith(b"\x08") and file.suffix == ".onnx":
            return _read_onnx(file)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{file} is damaged, or holds more than tensors, which could run foreign code and is never unpickled: "
            f"{str(error).splitlines()[0]}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
        raise WeightsError(f"{file} is cut short or damaged ({error}); fetch it again") from error
    what = {b"<": "a web page", b"v": "a pointer of Git LFS"}.get(start[:1], f"a file that starts with {start!r}")
    raise WeightsError(f"expected a PyTorch or safetensors file in {file}, found {what}; fetch it again")


class _Unread:
    """Stands for an object of a foreign class in a checkpoint, such as fairseq's config. It does nothing."""

    def __new__(cls, *values: Any) -> "_Unread":
        return super().__new__(cls)

    def __init__(self, *values: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unread_dict(*values: Any) -> dict[Any, Any]:
    """Stand for a foreign dict: torch's reader puts items into none but Python's."""
    return {}


def _load_tensors(file: Path) -> Any:
    """Load a file of torch's with its restricted reader; a foreign config in it becomes `_Unread`.

    Raises UnpicklingError for classes and functions of Python's own libraries that a config has no use for.
    """
    foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file) if zipfile.is_zipfile(file) else []
    stands_for: list[Any] = [
        (_unread_dict if name == "collections.defaultdict" else _Unread, name)
        for name in foreign
        if name in _OF_CONFIGS or name.split(".")[0] not in sys.stdlib_module_names
    ]
    with torch.serialization.safe_globals(stands_for):
        return torch.load(file, map_location="cpu", weights_only=True)


def _read_onnx(file: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Read one of our own exports, whose tensors keep their names."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise WeightsError(f"{file} needs a package that is not installed ({error}): pip install '.[onnx]'") from error
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


def _read_json(file: Path) -> Mapping[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise WeightsError(f"expected JSON in {file}, found: {error}") from error


def _fetch_from_store(address: str, folder: Path) -> Path:
    """Copy what matters of a checkpoint's folder, or one file, from a store to a local folder."""
    parent, _, name = address.rstrip("/").rpartition("/")
    is_file = Path(name).suffix in _SUFFIXES
    store = Store(parent if is_file else address)
    for found in filter(store.exists, [*DESCRIPTION_FILES, FEATURES_FILE, *([name] if is_file else WEIGHT_FILES)]):
        (folder / found).write_bytes(store.read_bytes(found))
    if not any(folder.iterdir()):
        raise WeightsError(f"expected weights at {address}, found neither a file nor a checkpoint's folder")
    return folder / name if is_file else folder


def _fetch_from_hub(name: str) -> Path:
    """Return the local copy of a model on the hub. What is in the cache is not asked for again."""
    try:
        folder = _download(name, local_files_only=True) or _download(name, local_files_only=False)
    except OSError as error:  # whatever the hub or the network says
        raise WeightsError(
            f"{name} is not a local file or folder, nor in the hub's cache, and the hub says: "
            f"{str(error).splitlines()[0]} Without a network, put its {WEIGHT_FILES[0]} and config.json into a folder "
            "and give the path of the folder"
        ) from error
    if folder is None:
        raise WeightsError(f"expected {' or '.join(WEIGHT_FILES)} in {name} on the hub, found neither")
    return folder


def _download(name: str, local_files_only: bool) -> Path | None:
    absent = LocalEntryNotFoundError if local_files_only else RemoteEntryNotFoundError
    for weights in WEIGHT_FILES:
        with suppress(absent):
            file = hf_hub_download(name, weights, local_files_only=local_files_only)
            for description in ("config.json", FEATURES_FILE):
                with suppress(absent):
                    hf_hub_download(name, description, local_files_only=local_files_only)
            return Path(file).parent
    return None
