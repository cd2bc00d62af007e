"""Locate weights in a file, a folder, a store, or on the Hugging Face hub."""

import re
from contextlib import suppress
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from pipeline.errors import WeightsError
from pipeline.store.storage import Store

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a folder, in order of preference."""
DESCRIPTION_FILES = ("checkpoint.json", "config.json")
FEATURES_FILE = "preprocessor_config.json"

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".onnx")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
"""A name such as `MIT/ast-finetuned-audioset-10-10-0.4593`, but not `../folder`."""


def locate_weights(source: str | Path) -> str:
    """Return an absolute path, an address or a hub name, valid in any process. Raises WeightsError if none exists."""
    path = Path(source).expanduser()
    if path.exists():
        return str(path.resolve())
    if "://" in str(source) or _HUB_NAME.fullmatch(str(source)):
        return str(source)
    raise WeightsError(f"expected weights at {path.resolve()}, found nothing; it is not a name on the hub either")


def find_weights(path: Path) -> Path:
    """Return the file of weights at a path: the file itself, or the one in the folder. Raises WeightsError."""
    if path.is_file():
        return path
    # Also in the only subfolder with weights, because a run stores its averaged weights as `average/NAME`.
    for pattern in ("", "*/"):
        found = sorted(file for name in WEIGHT_FILES for file in path.glob(pattern + name))
        if len({file.parent for file in found}) > 1:
            names = ", ".join(file.parent.name for file in found[-3:])
            raise WeightsError(f"expected one checkpoint in {path}, found {len(found)}; name one: {names}")
        if found:
            return min(found, key=lambda file: WEIGHT_FILES.index(file.name))
    if shards := sorted(path.glob("*.index.json")):
        raise WeightsError(
            f"expected one file of weights in {path}, found a sharded checkpoint ({shards[0].name}). Save it once in"
            " one file: in transformers, model.save_pretrained(folder, max_shard_size='20GB')"
        )
    names = ", ".join(sorted(child.name for child in path.iterdir())[:8]) or "nothing"
    raise WeightsError(f"expected {' or '.join(WEIGHT_FILES)} in {path}, found {names}; give the path of the file")


def fetch_from_store(address: str, folder: Path) -> Path:
    """Copy the weights and descriptions at an address in a store to a local folder. Return the file or the folder."""
    parent, _, name = address.rstrip("/").rpartition("/")
    is_file = Path(name).suffix in _SUFFIXES
    store = Store(parent if is_file else address)
    for found in filter(store.exists, [*DESCRIPTION_FILES, FEATURES_FILE, *([name] if is_file else WEIGHT_FILES)]):
        (folder / found).write_bytes(store.read_bytes(found))
    if not any(folder.iterdir()):
        raise WeightsError(f"expected a file of weights or a checkpoint's folder at {address}, found neither")
    return folder / name if is_file else folder


def fetch_from_hub(name: str) -> Path:
    """Return the cached folder of a model on the hub, downloading it if needed. A cached model needs no network."""
    try:
        folder = _download(name, local_files_only=True) or _download(name, local_files_only=False)
    except OSError as error:  # errors of the hub and of the network
        raise WeightsError(
            f"{name} is not a local file or folder, nor in the hub's cache, and the hub reports: "
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
