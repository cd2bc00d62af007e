"""Checkpoints are folders of safetensors with a `checkpoint.json` that is written last.

runs/{run}/checkpoints/{name}/
    model.safetensors       weights
    optimizer.safetensors   Adam's moments
    average.safetensors     running mean of the epochs' weights, if the run averages them
    checkpoint.json         loop state, configs, classes, normalisation, digests of all files including itself
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import CorruptError, MismatchError
from pipeline.store.storage import Store, replace_non_finite

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Version 2 stores the loop state as one object and a digest of `checkpoint.json` itself."""
DESCRIPTION = "checkpoint.json"
PARTS = ("model", "optimizer", "average")
Tensors = dict[str, Tensor]


@dataclass
class LoopState:
    """Progress of the training loop, as stored in each checkpoint."""

    epoch: int = 0
    """Number of finished epochs."""
    step: int = 0
    """Steps taken in the current epoch."""
    loss_sum: float = 0.0
    """Sum of the losses of all steps since the last evaluation, except skipped steps."""
    num_steps_taken: int = 0
    """Number of steps since the last evaluation, except skipped steps."""
    num_steps_skipped: int = 0
    """Steps skipped since the start of the run."""
    num_averaged: int = 0
    """Number of epochs in the running mean of the weights."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of the evaluated epochs, in order."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the loss scaler, for fp16 only."""

    @property
    def name(self) -> str:
        """Name of a checkpoint with this state. Names sort by progress."""
        return f"epoch-{self.epoch:04d}-step-{self.step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """Weights and state to resume a training run or to tag with."""

    loop: LoopState
    model: Tensors
    optimizer: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)
    """Model and train config, labels, mean, std, snapshot and run. A checkpoint that was read has all of
    `checkpoint.json`."""


def save_checkpoint(store: Store, folder: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint to a new folder below `folder` and return its name. The description is written last."""
    name = f"{folder}/{checkpoint.loop.name}"
    digests = {}
    for part in PARTS:
        if tensors := getattr(checkpoint, part):
            data = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
            store.write_bytes(f"{name}/{part}.safetensors", data)
            digests[part] = hashlib.sha256(data).hexdigest()
    own = {"format": FORMAT_VERSION, "loop": asdict(checkpoint.loop), "digests": digests}
    _write_description(store, name, {**checkpoint.description, **own})
    return name


def add_evaluation(store: Store, folder: str, loop: LoopState, score: float) -> str:
    """Add an evaluation to an existing checkpoint. Replaces its `checkpoint.json` atomically."""
    name = f"{folder}/{loop.name}"
    _write_description(store, name, {**read_description(store, name), "loop": asdict(loop), "score": score})
    return name


def _write_description(store: Store, name: str, description: dict[str, Any]) -> None:
    description = replace_non_finite(description)  # before computing the digest, which must match the file's content
    store.write_json(f"{name}/{DESCRIPTION}", {**description, "digest": _digest(description)})


def _digest(description: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in description.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_description(store: Store, name: str) -> dict[str, Any]:
    """Read a `checkpoint.json`. Raises CorruptError if it is damaged, MismatchError for another format version."""
    where = f"{store.url(name)}/{DESCRIPTION}"
    description = store.read_json(f"{name}/{DESCRIPTION}")
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise CorruptError(f"{where}: expected the description of a checkpoint, found {str(description)[:100]!r}")
    if description["format"] != FORMAT_VERSION:
        raise MismatchError(
            f"{where}: expected a checkpoint of format {FORMAT_VERSION}, found format {description['format']} of"
            " another version of this code. Resume with that version, or start a new run (--train.init accepts the"
            " checkpoint's weights)"
        )
    # The digest detects missing fields, changed types and flipped digits.
    if description.get("digest") != _digest(description):
        raise CorruptError(f"{where} is cut short or was changed: its digest differs")
    _check_fields(description, where)
    return description


def _check_fields(description: Mapping[str, Any], where: str) -> None:
    """Raise CorruptError if the loop state or the digests have wrong types, which a valid digest does not rule out."""
    loop, digests = description.get("loop"), description.get("digests")
    if not isinstance(digests, dict) or "model" not in digests or not digests.keys() <= set(PARTS):
        raise CorruptError(f"{where}: expected digests of {', '.join(PARTS)}, found {str(digests)[:100]!r}")
    types = {
        name: int | float if isinstance(value, float) else type(value) for name, value in vars(LoopState()).items()
    }
    if not isinstance(loop, dict) or not all(isinstance(value, types.get(name, ())) for name, value in loop.items()):
        raise CorruptError(f"{where}: expected a loop of {', '.join(types)}, found {str(loop)[:100]!r}")


def read_checkpoint(store: Store, name: str) -> Checkpoint:
    """Read a checkpoint. Raises CorruptError if a file differs from its description."""
    description = read_description(store, name)
    parts = {}
    for part, digest in description["digests"].items():
        if not store.exists(f"{name}/{part}.safetensors"):
            raise CorruptError(f"{store.url(name)}: expected {part}.safetensors, found none")
        data = store.read_bytes(f"{name}/{part}.safetensors")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptError(f"{store.url(name)}/{part}.safetensors is cut short or was changed: its digest differs")
        try:
            parts[part] = load(data)
        except SafetensorError as error:
            raise CorruptError(f"{store.url(name)}/{part}.safetensors can't be read: {error}") from error
    return Checkpoint(LoopState(**description["loop"]), description=description, **parts)


def list_checkpoints(store: Store, folder: str) -> list[str]:
    """Return the folders of complete checkpoints, oldest first."""
    return [name.removesuffix(f"/{DESCRIPTION}") for name in store.list(folder, f"/{DESCRIPTION}")]


def newest_checkpoint(store: Store, folder: str) -> Checkpoint | None:
    """Read the newest intact checkpoint. Logs damaged checkpoints that are newer."""
    for name in reversed(list_checkpoints(store, folder)):
        try:
            return read_checkpoint(store, name)
        except CorruptError as error:
            log.warning("%s; falling back to the previous checkpoint", error)
    return None


def remove_checkpoint(store: Store, name: str) -> None:
    """Remove a checkpoint, its description first, so that a partly removed checkpoint never counts."""
    store.remove(f"{name}/{DESCRIPTION}")
    store.remove(name)


def remove_incomplete(store: Store, folder: str) -> None:
    """Remove partly written or partly removed checkpoints of dead processes. Only for the folder's sole writer."""
    found = {file.rpartition("/")[0] for file in store.list(folder)} - {folder}
    for name in sorted(found.difference(list_checkpoints(store, folder))):
        store.remove(name)
