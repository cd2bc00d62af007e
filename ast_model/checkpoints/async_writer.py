"""Checkpoints written beside the training: one at a time, in a thread, with patience for the storage."""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ast_model.checkpoints.checkpoint import Checkpoint, list_checkpoints, remove_checkpoint, save_checkpoint
from ast_model.config import CheckpointConfig
from pipeline.backoff import backoff
from pipeline.errors import StoreError
from pipeline.store.storage import Store

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
BEST = "best.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has reached the storage."""

    name: str
    """Its folder in the store."""
    description: Mapping[str, Any]


class Saver:
    """Writes a run's checkpoints, and keeps the newest and the best of them."""

    def __init__(self, store: Store, folder: str, config: CheckpointConfig, num_steps: int):
        self.store, self.folder, self.config = store, folder, config
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Saved] | None = None
        self._last_steps, self._last_time = num_steps, time.monotonic()

    def is_due(self, num_steps: int) -> bool:
        """Whether it is time for a checkpoint after so many steps; not while one is still being written."""
        config = self.config
        if self._writing is not None and not self._writing.done():
            return False
        is_late = config.every_minutes is not None and time.monotonic() - self._last_time >= 60 * config.every_minutes
        is_far = config.every_steps is not None and num_steps - self._last_steps >= config.every_steps
        return is_late or is_far

    def save(self, checkpoint: Checkpoint, num_steps: int, folder: str | None = None) -> Saved | None:
        """Copy a checkpoint and start to write it, once the one before is written; return that one.

        Raises StoreError if the storage refused the one before for longer than the patience.
        """
        before = self.wait()
        self._last_steps, self._last_time = num_steps, time.monotonic()
        self._writing = self._pool.submit(self._write, checkpoint.on_cpu(), folder or self.folder)
        return before

    def wait(self) -> Saved | None:
        """Wait until nothing is left to write; return what was written since the last call."""
        if self._writing is None:
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def finished(self) -> Saved | None:
        """Return what was written since the last call, without waiting."""
        return self.wait() if self._writing is not None and self._writing.done() else None

    def close(self) -> None:
        """Let what is being written come to its end, and start nothing new."""
        self._pool.shutdown()

    def _write(self, checkpoint: Checkpoint, folder: str) -> Saved:
        deadline, pauses = time.monotonic() + self.config.patience_s, backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        while True:
            try:
                name = save_checkpoint(self.store, folder, checkpoint)
                if folder == self.folder:
                    self._prune(name, checkpoint.description.get("score"))
                return Saved(name, checkpoint.description)
            except StoreError as error:
                pause_s = next(pauses)
                if time.monotonic() + pause_s > deadline:
                    raise
                log.warning("the checkpoint is not written yet: %s; trying again in %.1f s", error, pause_s)
                time.sleep(pause_s)

    def _prune(self, newest: str, score: float | None) -> None:
        best = best_checkpoint(self.store, self.folder)
        if score is not None and (best is None or score > best[1]):
            best = newest, score
            self.store.write_json(f"{self.folder}/{BEST}", {"name": newest, "score": score})
        names = list_checkpoints(self.store, self.folder)
        for name in names[: -self.config.num_kept]:
            if best is None or name != best[0]:
                remove_checkpoint(self.store, name)


def best_checkpoint(store: Store, folder: str) -> tuple[str, float] | None:
    """Return the folder and the score of the best epoch's checkpoint, if one has been measured."""
    if not store.exists(f"{folder}/{BEST}"):
        return None
    best = store.read_json(f"{folder}/{BEST}")
    return best["name"], best["score"]
