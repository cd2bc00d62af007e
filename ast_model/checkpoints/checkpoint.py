"""Checkpoints: a folder of safetensors and a `checkpoint.json`, written last, that says what they are.

runs/{run}/checkpoints/{name}/
    model.safetensors       weights to use; with an exponential moving average, that
    raw.safetensors         weights to train on with, where they are others
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

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.errors import CorruptError, MismatchError
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
DESCRIPTION = "checkpoint.json"
PARTS = ("model", "raw", "optimizer", "average")
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
    raw: State = field(default_factory=dict)
    optimizer: State = field(default_factory=dict)
    average: State = field(default_factory=dict)
    num_averaged: int = 0
    description: Mapping[str, Any] = field(default_factory=dict)
    """model and train config, labels, mean, std, snapshot, run, history of metrics, score, state of the loop."""

    @property
    def trained(self) -> State:
        """The weights that the training goes on with."""
        return self.raw or self.model

    def on_cpu(self) -> "Checkpoint":
        """Return a copy that further training does not change."""
        states = {part: {name: _copy(value) for name, value in getattr(self, part).items()} for part in PARTS}
        return dataclasses.replace(self, **states)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def save_checkpoint(store: Store, folder: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint below `folder` and return its own folder. It counts once its description is there."""
    name = f"{folder}/{checkpoint.position.name}"
    digests = {}
    for part in PARTS:
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
        if not store.exists(f"{name}/{part}.safetensors"):
            raise CorruptError(f"{store.url(name)}: expected {part}.safetensors, found none")
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


def remove_checkpoint(store: Store, name: str) -> None:
    """Remove a checkpoint; its description goes first, so that none counts that is half gone."""
    store.remove(f"{name}/{DESCRIPTION}")
    store.remove(name)
