"""Checkpoints: a folder of safetensors and a `checkpoint.json`, written last, that says what they are.

runs/{run}/checkpoints/{name}/
    model.safetensors       weights
    optimizer.safetensors   Adam's moments
    average.safetensors     running mean of the epochs' weights, where there is one
    checkpoint.json         position, configs, classes, normalisation, history, digests of the files above
"""

import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import CorruptError, MismatchError
from pipeline.storage import Store

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
State = dict[str, Tensor]


@dataclass(frozen=True)
class Position:
    """Where a training stands: before `step` of `epoch`, both counted from 0."""

    epoch: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        return f"epoch-{self.epoch:04d}-step-{self.step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on, and a user to tag with it."""

    position: Position
    model: State
    optimizer: State = field(default_factory=dict)
    average: State = field(default_factory=dict)
    num_averaged: int = 0
    description: Mapping[str, Any] = field(default_factory=dict)
    """model and train config, labels, mean, std, snapshot, run id, history of metrics."""


def optimizer_state(optimizer: torch.optim.Optimizer, names: list[str]) -> State:
    """Flatten the state of an optimiser over one group of named parameters into tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{key}": torch.as_tensor(value)
        for index, slots in state.items()
        for key, value in slots.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: list[str], state: State) -> None:
    """Undo `optimizer_state`."""
    whole = optimizer.state_dict()
    index_of = {name: index for index, name in enumerate(names)}
    slots: dict[int, dict[str, Tensor]] = {}
    for path, value in state.items():
        name, key = path.rsplit("/", 1)
        slots.setdefault(index_of[name], {})[key] = value
    optimizer.load_state_dict({**whole, "state": slots})


def save_checkpoint(store: Store, folder: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint below `folder` and return its own folder. It counts once its description is there."""
    name = f"{folder}/{checkpoint.position.name}"
    digests = {}
    for part in ("model", "optimizer", "average"):
        if state := getattr(checkpoint, part):
            data = save({key: value.detach().cpu().contiguous() for key, value in state.items()})
            store.write_bytes(f"{name}/{part}.safetensors", data)
            digests[part] = hashlib.sha256(data).hexdigest()
    description = {
        **checkpoint.description,
        "format": FORMAT_VERSION,
        "position": dataclasses.asdict(checkpoint.position),
        "num_averaged": checkpoint.num_averaged,
        "digests": digests,
    }
    store.write_json(f"{name}/{DESCRIPTION}", description)
    return name


def read_checkpoint(store: Store, name: str) -> Checkpoint:
    """Read a checkpoint whole. Raises CorruptError if a file is not the one that was described."""
    description = store.read_json(f"{name}/{DESCRIPTION}")
    if description.get("format") != FORMAT_VERSION:
        raise MismatchError(
            f"{store.url(name)}: expected a checkpoint of format {FORMAT_VERSION}, found {description.get('format')}"
        )
    states = {}
    for part, digest in description["digests"].items():
        data = store.read_bytes(f"{name}/{part}.safetensors")
        if hashlib.sha256(data).hexdigest() != digest:
            raise CorruptError(f"{store.url(name)}/{part}.safetensors is cut short or was changed: its digest differs")
        try:
            states[part] = load(data)
        except SafetensorError as error:
            raise CorruptError(f"{store.url(name)}/{part}.safetensors can't be read: {error}") from error
    position = Position(**description["position"])
    return Checkpoint(position, num_averaged=description["num_averaged"], description=description, **states)


def list_checkpoints(store: Store, folder: str) -> list[str]:
    """Return the folders of complete checkpoints, oldest first."""
    return [name.removesuffix(f"/{DESCRIPTION}") for name in store.list(folder, DESCRIPTION)]


def newest_checkpoint(store: Store, folder: str) -> Checkpoint | None:
    """Read the newest sound checkpoint; say which newer ones are not."""
    for name in reversed(list_checkpoints(store, folder)):
        try:
            return read_checkpoint(store, name)
        except CorruptError as error:
            log.warning("%s; going back to the checkpoint before", error)
    return None


def prune_checkpoints(store: Store, folder: str, num_kept: int) -> None:
    """Remove all but the newest checkpoints; the description goes first, so that none counts that is half gone."""
    for name in list_checkpoints(store, folder)[:-num_kept]:
        store.remove(f"{name}/{DESCRIPTION}")
        store.remove(name)
