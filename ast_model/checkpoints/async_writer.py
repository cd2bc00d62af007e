"""Asynchronous checkpoint writer: one thread, with retries."""

import copy
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ast_model.checkpoints.checkpoint import (
    PARTS,
    Checkpoint,
    LoopState,
    add_evaluation,
    list_checkpoints,
    read_description,
    remove_checkpoint,
    remove_incomplete,
    save_checkpoint,
)
from ast_model.config import CheckpointConfig
from pipeline.backoff import backoff
from pipeline.errors import CorruptError, StoreError
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
BEST_FILE = "best.json"


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that has been written to the store."""

    name: str
    """Folder of the checkpoint in the store."""
    description: Mapping[str, Any]
    """Content of `checkpoint.json`."""


class CheckpointBuffers:
    """Reusable host buffers for a copy of the checkpoint that is being written.

    Copies from a GPU use pinned memory, so the GPU copies between two steps and the process does not wait for the 1 GB
    of AST-base.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def copy(self, checkpoint: Checkpoint) -> tuple[Checkpoint, torch.cuda.Event | None]:
        """Start copying a checkpoint into the buffers. The event marks the end of a copy that is not done yet."""
        parts = {
            part: {name: self._copy(part, name, value.detach()) for name, value in getattr(checkpoint, part).items()}
            for part in PARTS
        }
        is_copied = None
        if any(value.is_cuda for part in PARTS for value in getattr(checkpoint, part).values()):
            is_copied = torch.cuda.Event()
            is_copied.record()
        return dataclasses.replace(checkpoint, loop=copy.deepcopy(checkpoint.loop), **parts), is_copied

    def _copy(self, part: str, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get((part, name))
        if buffer is None:
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._buffers[part, name] = buffer
        return buffer.copy_(value, non_blocking=True)


class CheckpointWriter:
    """Writes the checkpoints of a run, and prunes all but the newest and the best."""

    def __init__(self, store: Store, folder: str, config: CheckpointConfig, num_steps: int):
        self.store, self.folder, self.config = store, folder, config
        self._staging = CheckpointBuffers()
        # A single thread keeps the order of writes, so an evaluation finds its checkpoint.
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: deque[Future[SavedCheckpoint]] = deque()
        self._last_steps, self._last_time = num_steps, time.monotonic()

    def is_due(self, num_steps: int) -> bool:
        """Return True if a checkpoint is due after `num_steps` steps and no write is in progress."""
        config = self.config
        if any(not writing.done() for writing in self._writing):
            return False
        is_late = config.every_minutes is not None and time.monotonic() - self._last_time >= 60 * config.every_minutes
        is_far = config.every_steps is not None and num_steps - self._last_steps >= config.every_steps
        return is_late or is_far

    def submit(self, checkpoint: Checkpoint, num_steps: int, folder: str | None = None) -> None:
        """Copy a checkpoint and start writing it. Waits for the previous write, because the buffers hold a single copy.

        Raises StoreError if the previous write failed despite retries.
        """
        self.wait()
        self._last_steps, self._last_time = num_steps, time.monotonic()
        # Copy now: the next step changes the weights in place.
        staged, is_copied = self._staging.copy(checkpoint)
        self._start(partial(self._save, staged, is_copied, folder or self.folder))

    def submit_evaluation(self, loop: LoopState, score: float) -> None:
        """Start adding an evaluation to the checkpoint that was submitted for this loop state."""
        self._start(partial(self._add_evaluation, copy.deepcopy(loop), score))

    def completed(self) -> list[SavedCheckpoint]:
        """Return the checkpoints written since the last call, without waiting."""
        saved = []
        while self._writing and self._writing[0].done():
            saved.append(self._writing.popleft().result())
        return saved

    def wait(self) -> None:
        """Wait for all writes. Raises StoreError if one failed despite retries."""
        for writing in self._writing:
            writing.result()

    def close(self) -> None:
        """Finish pending writes and end the thread."""
        self._pool.shutdown()

    def _start(self, write: Callable[[], SavedCheckpoint]) -> None:
        self._writing.append(self._pool.submit(self._retry, write))

    def _retry(self, write: Callable[[], SavedCheckpoint]) -> SavedCheckpoint:
        deadline, pauses = time.monotonic() + self.config.patience_s, backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                return write()
            except StoreError as error:
                pause_s = next(pauses)
                if time.monotonic() + pause_s > deadline:
                    raise
                log.warning("can't write the checkpoint: %s; retrying in %.1f s", error, pause_s)
                time.sleep(pause_s)

    def _save(self, checkpoint: Checkpoint, is_copied: torch.cuda.Event | None, folder: str) -> SavedCheckpoint:
        if is_copied is not None:
            is_copied.synchronize()
        name = save_checkpoint(self.store, folder, checkpoint)
        if folder == self.folder:  # the average is a single checkpoint in a separate folder
            self._prune()
        return SavedCheckpoint(name, read_description(self.store, name))

    def _add_evaluation(self, loop: LoopState, score: float) -> SavedCheckpoint:
        name = add_evaluation(self.store, self.folder, loop, score)
        # Read from the store: an earlier process of this run may have written the best checkpoint.
        best = best_checkpoint(self.store, self.folder)
        if best is None or score > best[1]:
            self.store.write_json(f"{self.folder}/{BEST_FILE}", {"name": name, "score": score})
        self._prune()
        return SavedCheckpoint(name, read_description(self.store, name))

    def _prune(self) -> None:
        best = best_checkpoint(self.store, self.folder)
        for name in list_checkpoints(self.store, self.folder)[: -self.config.num_kept]:
            if best is None or name != best[0]:
                remove_checkpoint(self.store, name)
        remove_incomplete(self.store, self.folder)


def best_checkpoint(store: Store, folder: str) -> tuple[str, float] | None:
    """Return the folder and score of the best epoch's checkpoint, or None before the first evaluation."""
    if not store.exists(f"{folder}/{BEST_FILE}"):
        return None
    try:
        best = store.read_json(f"{folder}/{BEST_FILE}")
        return str(best["name"]), float(best["score"])
    except (CorruptError, KeyError, TypeError, ValueError) as error:
        log.warning(
            "%s is damaged; only future epochs compete for the best checkpoint: %r",
            store.url(f"{folder}/{BEST_FILE}"),
            error,
        )
        return None
