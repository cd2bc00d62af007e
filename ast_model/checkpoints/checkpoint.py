"""Checkpoints: a folder of safetensors and a `checkpoint.json`, written last, that describes them.

runs/{run}/checkpoints/{name}/
    model.safetensors       weights
    optimizer.safetensors   Adam's moments
    average.safetensors     running mean of the epochs' weights, where there is one
    checkpoint.json         state of the loop, configs, classes, normalisation, digests of the files and of itself
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
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""2: the state of the loop in one piece, and a digest of checkpoint.json itself."""
DESCRIPTION = "checkpoint.json"
PARTS = ("model", "optimizer", "average")
Tensors = dict[str, Tensor]


@dataclass
class LoopState:
    """Progress of a training. It is saved as it is, and resumed as it was."""

    epoch: int = 0
    """Epochs whose steps are all taken."""
    step: int = 0
    """Steps taken of the epoch after those."""
    loss_sum: float = 0.0
    """Of the steps of this epoch that were taken; until an epoch is evaluated, it is still this one."""
    num_steps_taken: int = 0
    """Steps of this epoch that were taken, those not counted that were skipped."""
    num_steps_skipped: int = 0
    """Since the start of the run."""
    num_averaged: int = 0
    """Epochs in the running mean of the weights."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each epoch that was evaluated."""
    scaler: dict[str, float] = field(default_factory=dict)
    """State of the loss scaler; empty unless the precision is fp16."""

    @property
    def name(self) -> str:
        """Name of the checkpoint at this place; names sort by progress."""
        return f"epoch-{self.epoch:04d}-step-{self.step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on, and a user to tag with it."""

    loop: LoopState
    model: Tensors
    optimizer: Tensors = field(default_factory=dict)
    average: Tensors = field(default_factory=dict)
    description: Mapping[str, Any] = field(default_factory=dict)
    """Model and train config, labels, mean, std, snapshot, run; once read, the whole of checkpoint.json."""


def save_checkpoint(store: Store, folder: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint below `folder` and return its own folder. It counts once its description is there."""
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
    """Bring what an evaluation gave, the loop's history and a score, to a checkpoint that is written already.

    The weights stay as they are: only checkpoint.json is replaced, in one piece.
    """
    name = f"{folder}/{loop.name}"
    _write_description(store, name, {**read_description(store, name), "loop": asdict(loop), "score": score})
    return name


def _write_description(store: Store, name: str, description: dict[str, Any]) -> None:
    store.write_json(f"{name}/{DESCRIPTION}", {**description, "digest": _digest(description)})


def _digest(description: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in description.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_description(store: Store, name: str) -> dict[str, Any]:
    """Read a checkpoint.json. Raises CorruptError if it was damaged, MismatchError if it is of another format."""
    where = f"{store.url(name)}/{DESCRIPTION}"
    description = store.read_json(f"{name}/{DESCRIPTION}")
    if not isinstance(description, dict) or "format" not in description:
        raise CorruptError(f"{where}: expected the description of a checkpoint, found {str(description)[:100]!r}")
    if description["format"] != FORMAT_VERSION:
        raise MismatchError(
            f"{where}: expected a checkpoint of format {FORMAT_VERSION}, found {description['format']}; it is of"
            " another version of this code: go on with that, or start a new run (--train.init takes its weights)"
        )
    # Its own digest covers every field at once: one that is missing, another type, a number with a flipped digit.
    if description.get("digest") != _digest(description):
        raise CorruptError(f"{where} is cut short or was changed: its digest differs")
    return description


def read_checkpoint(store: Store, name: str) -> Checkpoint:
    """Read a checkpoint whole. Raises CorruptError if a file is not the one that was described."""
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
    """Read the newest sound checkpoint; name newer ones that are damaged."""
    for name in reversed(list_checkpoints(store, folder)):
        try:
            return read_checkpoint(store, name)
        except CorruptError as error:
            log.warning("%s; going back to the checkpoint before", error)
    return None


def remove_checkpoint(store: Store, name: str) -> None:
    """Remove a checkpoint; its description goes first, so that none counts that is half gone."""
    store.remove(f"{name}/{DESCRIPTION}")
    store.remove(name)


def remove_incomplete(store: Store, folder: str) -> None:
    """Remove what a process was writing, or removing, when it died. Only for who alone writes to the folder."""
    found = {file.rpartition("/")[0] for file in store.list(folder)} - {folder}
    for name in sorted(found.difference(list_checkpoints(store, folder))):
        store.remove(name)
