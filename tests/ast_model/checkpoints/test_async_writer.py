import threading
import time
from pathlib import Path

import pytest
import torch

from ast_model.checkpoints.async_writer import CheckpointBuffers, CheckpointWriter, best_checkpoint
from ast_model.checkpoints.checkpoint import Checkpoint, LoopState, list_checkpoints, read_checkpoint
from ast_model.config import CheckpointConfig
from pipeline.errors import StoreError
from pipeline.store.storage import Store

FOLDER = "runs/one/checkpoints"


class RefusingStore(Store):
    """Store that fails to write while `refuses` is set. `has_refused` is set at the first failure."""

    refuses = threading.Event()
    has_refused = threading.Event()

    def write_bytes(self, name: str, data: bytes) -> None:
        if self.refuses.is_set():
            self.has_refused.set()
            raise StoreError(f"can't write {name}: no space left")
        super().write_bytes(name, data)


@pytest.fixture
def store(tmp_path: Path) -> RefusingStore:
    RefusingStore.refuses.clear()
    RefusingStore.has_refused.clear()
    return RefusingStore(str(tmp_path))


def make_checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint(LoopState(epoch), {"weight": torch.full((3,), float(epoch))})


def test_newest_and_best_checkpoints_are_kept(store: RefusingStore) -> None:
    store.write_bytes(f"{FOLDER}/epoch-0000-step-00000009/model.safetensors", b"of a process that died")
    saver = CheckpointWriter(store, FOLDER, CheckpointConfig(num_kept=2), 0)
    for epoch, score in enumerate((0.1, 0.9, 0.5, None, 0.6)):
        checkpoint = make_checkpoint(epoch)
        saver.submit(checkpoint, epoch)
        if score is not None:
            saver.submit_evaluation(checkpoint.loop, score)
    saver.wait()
    saver.close()
    assert [saved.description.get("score") for saved in saver.completed()[-3:]] == [None, None, 0.6]
    assert [name[-18:-14] for name in list_checkpoints(store, FOLDER)] == ["0001", "0003", "0004"]
    assert best_checkpoint(store, FOLDER) == (f"{FOLDER}/{LoopState(1).name}", 0.9)
    assert {name.split("/")[3] for name in store.list(FOLDER)} == {
        "best.json",
        *(LoopState(epoch).name for epoch in (1, 3, 4)),
    }


def test_consecutive_checkpoints_share_buffers() -> None:
    staging, weights = CheckpointBuffers(), torch.arange(6.0).view(2, 3)
    first, is_copied = staging.copy(Checkpoint(LoopState(1), {"a": weights.T}, optimizer={"a": weights}))
    assert is_copied is None
    address = first.model["a"].data_ptr()
    assert first.model["a"].is_contiguous()
    torch.testing.assert_close(first.model["a"], torch.arange(6.0).view(2, 3).T)
    second, _ = staging.copy(Checkpoint(LoopState(2), {"a": 2 * weights.T, "b": weights}))
    assert second.model["a"].data_ptr() == address
    assert second.model.keys() == {"a", "b"}
    assert not second.optimizer
    weights.zero_()
    torch.testing.assert_close(second.model["a"], 2 * torch.arange(6.0).view(2, 3).T)


def test_saved_checkpoint_is_unaffected_by_later_steps(store: RefusingStore) -> None:
    store.refuses.set()
    saver = CheckpointWriter(store, FOLDER, CheckpointConfig(), 0)
    weight = torch.zeros(3)
    saver.submit(Checkpoint(LoopState(), {"weight": weight}), 0)
    weight += 1
    store.refuses.clear()
    saver.wait()
    (saved,) = saver.completed()
    assert read_checkpoint(store, saved.name).model["weight"].tolist() == [0, 0, 0]


def test_failed_writes_are_retried_while_training_continues(
    store: RefusingStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.refuses.set()
    saver = CheckpointWriter(store, FOLDER, CheckpointConfig(every_steps=1, patience_s=60), 0)
    saver.submit(make_checkpoint(1), 1)
    assert store.has_refused.wait(60)
    assert saver.completed() == []
    assert not saver.is_due(2), "one is still being written"
    store.refuses.clear()
    saver.wait()
    assert len(saver.completed()) == 1
    assert "can't write the checkpoint" in caplog.text
    assert saver.is_due(2)


def test_retries_end_after_the_patience(store: RefusingStore) -> None:
    store.refuses.set()
    saver = CheckpointWriter(store, FOLDER, CheckpointConfig(patience_s=0), 0)
    saver.submit(make_checkpoint(1), 1)
    with pytest.raises(StoreError, match="no space left"):
        saver.wait()


def test_checkpoint_is_due_by_steps_or_minutes(store: RefusingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    by_steps = CheckpointWriter(store, FOLDER, CheckpointConfig(every_steps=10, every_minutes=None), 5)
    assert [by_steps.is_due(num_steps) for num_steps in (14, 15)] == [False, True]
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    by_time = CheckpointWriter(store, FOLDER, CheckpointConfig(every_minutes=5), 0)
    now += 299
    assert not by_time.is_due(10**6)
    now += 1
    assert by_time.is_due(1)
