import threading
import time
from pathlib import Path

import pytest
import torch

from ast_model.checkpoints.async_writer import Saver, best_checkpoint
from ast_model.checkpoints.checkpoint import Checkpoint, Position, list_checkpoints, read_checkpoint
from ast_model.config import CheckpointConfig
from pipeline.errors import StoreError
from pipeline.store.storage import Store

FOLDER = "runs/one/checkpoints"


class RefusingStore(Store):
    """Refuses to write for as long as `refuses` is set."""

    refuses = threading.Event()

    def write_bytes(self, name: str, data: bytes) -> None:
        if self.refuses.is_set():
            raise StoreError(f"can't write {name}: no space left")
        super().write_bytes(name, data)


@pytest.fixture
def store(tmp_path: Path) -> RefusingStore:
    RefusingStore.refuses.clear()
    return RefusingStore(str(tmp_path))


def make_checkpoint(epoch: int, score: float | None = None) -> Checkpoint:
    description = {} if score is None else {"score": score}
    return Checkpoint(Position(epoch), {"weight": torch.full((3,), float(epoch))}, description=description)


def test_the_newest_and_the_best_are_kept(store: RefusingStore) -> None:
    saver = Saver(store, FOLDER, CheckpointConfig(num_kept=2), 0)
    for epoch, score in enumerate((0.1, 0.9, 0.5, None, 0.6)):
        saver.save(make_checkpoint(epoch, score), epoch)
    saver.wait()
    saver.close()
    assert [name[-18:-14] for name in list_checkpoints(store, FOLDER)] == ["0001", "0003", "0004"]
    assert best_checkpoint(store, FOLDER) == (f"{FOLDER}/{Position(1).name}", 0.9)


def test_what_is_saved_does_not_change_with_the_training(store: RefusingStore) -> None:
    store.refuses.set()
    saver = Saver(store, FOLDER, CheckpointConfig(), 0)
    weight = torch.zeros(3)
    saver.save(Checkpoint(Position(), {"weight": weight}), 0)
    weight += 1
    store.refuses.clear()
    saved = saver.wait()
    assert saved is not None
    assert read_checkpoint(store, saved.name).model["weight"].tolist() == [0, 0, 0]


def test_a_storage_that_refuses_for_a_while_is_waited_for_beside_the_training(
    store: RefusingStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.refuses.set()
    saver = Saver(store, FOLDER, CheckpointConfig(every_steps=1, patience_s=60), 0)
    saver.save(make_checkpoint(1), 1)
    time.sleep(0.1)
    assert saver.finished() is None
    assert not saver.is_due(2), "one is still being written"
    store.refuses.clear()
    assert saver.wait() is not None
    assert "the checkpoint is not written yet" in caplog.text
    assert saver.is_due(2)


def test_patience_has_an_end(store: RefusingStore) -> None:
    store.refuses.set()
    saver = Saver(store, FOLDER, CheckpointConfig(patience_s=0), 0)
    saver.save(make_checkpoint(1), 1)
    with pytest.raises(StoreError, match="no space left"):
        saver.wait()


def test_it_is_time_by_steps_or_minutes(store: RefusingStore) -> None:
    by_steps = Saver(store, FOLDER, CheckpointConfig(every_steps=10, every_minutes=None), 5)
    assert [by_steps.is_due(num_steps) for num_steps in (14, 15)] == [False, True]
    by_time = Saver(store, FOLDER, CheckpointConfig(every_minutes=0.001), 0)
    assert not by_time.is_due(10**6)
    time.sleep(0.07)
    assert by_time.is_due(1)
