import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from ast_model.checkpoints.checkpoint import (
    Checkpoint,
    LoopState,
    _write_description,
    add_evaluation,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    read_description,
    remove_checkpoint,
    remove_incomplete,
    save_checkpoint,
)
from pipeline.errors import CorruptError, MismatchError
from pipeline.store.storage import Store

FOLDER = "runs/one/checkpoints"
MINE = {"snapshot": "one", "run": "one"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def save_epochs(store: Store, num_epochs: int) -> list[str]:
    return [
        save_checkpoint(store, FOLDER, Checkpoint(LoopState(epoch), {"weight": torch.full((3,), float(epoch))}))
        for epoch in range(num_epochs)
    ]


def test_checkpoint_round_trip(store: Store) -> None:
    parts = {part: {"weight": torch.randn(3, 2)} for part in ("model", "optimizer", "average")}
    saved = Checkpoint(
        LoopState(2, 5, num_averaged=3, history=[{"loss": 0.1}], scaler={"scale": 2.0}),
        **parts,
        description={"run": "one"},
    )
    read = read_checkpoint(store, save_checkpoint(store, FOLDER, saved))
    assert read.loop == saved.loop
    assert read.description["run"] == "one"
    for part in parts:
        torch.testing.assert_close(getattr(read, part), getattr(saved, part), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        ("model.safetensors", b""),
        ("checkpoint.json", b'{"format": 2, "posit'),
        ("checkpoint.json", b"[]"),
        ("checkpoint.json", b"{}"),
        ("checkpoint.json", b'{"format": 2, "loop": {}, "digests": {}}'),
        ("checkpoint.json", b""),
    ],
)
def test_damaged_newest_checkpoint_is_reported_and_skipped(
    store: Store, caplog: pytest.LogCaptureFixture, file: str, content: bytes
) -> None:
    newest = save_epochs(store, 3)[-1]
    Path(store.path(f"{newest}/{file}")).write_bytes(content)
    with pytest.raises(CorruptError, match=f"epoch-0002.*{file}"):
        read_checkpoint(store, newest)
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(store, FOLDER)
    assert found is not None
    assert found.loop == LoopState(1)
    assert f"epoch-0002-step-00000000/{file}" in caplog.text
    assert "falling back to the previous checkpoint" in caplog.text


def test_flipped_bit_is_detected(store: Store) -> None:
    file = Path(store.path(f"{save_epochs(store, 1)[0]}/model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptError, match="its digest differs"):
        read_checkpoint(store, f"{FOLDER}/{LoopState().name}")


def test_checkpoint_without_description_does_not_count(store: Store) -> None:
    # The state after a kill during saving.
    names = save_epochs(store, 2)
    store.remove(f"{names[-1]}/checkpoint.json")
    assert list_checkpoints(store, FOLDER) == names[:1]


def test_run_without_checkpoints_is_not_an_error(store: Store) -> None:
    assert newest_checkpoint(store, FOLDER) is None


def test_missing_file_is_reported(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    newest = save_epochs(store, 2)[-1]
    store.remove(f"{newest}/model.safetensors")
    found = newest_checkpoint(store, FOLDER)
    assert found is not None
    assert found.loop == LoopState(0)
    assert "expected model.safetensors, found none" in caplog.text


def test_removed_checkpoint_leaves_no_files(store: Store) -> None:
    names = save_epochs(store, 2)
    remove_checkpoint(store, names[0])
    assert store.list(FOLDER) == [f"{names[1]}/{file}" for file in ("checkpoint.json", "model.safetensors")]


def test_other_format_versions_are_rejected(store: Store) -> None:
    name = save_epochs(store, 1)[0]
    file = Path(store.path(f"{name}/checkpoint.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(MismatchError, match="expected a checkpoint of format 2, found format 99"):
        newest_checkpoint(store, FOLDER)


def test_names_sort_by_progress() -> None:
    states = [LoopState(epoch, step) for epoch in (0, 9, 10, 100) for step in (0, 99, 100_000)]
    assert [state.name for state in states] == sorted(state.name for state in states)


@pytest.mark.parametrize("field", ["loop", "digests", "snapshot", "digest"])
def test_description_without_a_field_is_corrupt(store: Store, field: str) -> None:
    names = [
        save_checkpoint(store, FOLDER, Checkpoint(LoopState(epoch), {"weight": torch.zeros(1)}, description=MINE))
        for epoch in range(2)
    ]
    file = Path(store.path(f"{names[1]}/checkpoint.json"))
    description = json.loads(file.read_text())
    del description[field]
    file.write_text(json.dumps(description))
    found = newest_checkpoint(store, FOLDER)
    assert found is not None
    assert found.loop == LoopState(0)


def test_evaluation_is_added_to_a_written_checkpoint(store: Store) -> None:
    name = save_epochs(store, 1)[0]
    before = store.read_bytes(f"{name}/model.safetensors")
    assert add_evaluation(store, FOLDER, LoopState(history=[{"eval/mAP": 0.5}]), 0.5) == name
    read = read_checkpoint(store, name)
    assert (read.loop.history, read.description["score"]) == ([{"eval/mAP": 0.5}], 0.5)
    assert store.read_bytes(f"{name}/model.safetensors") == before


def test_partial_writes_of_a_dead_process_are_removed(store: Store) -> None:
    names = save_epochs(store, 3)
    store.remove(f"{names[1]}/checkpoint.json")
    store.write_json(f"{FOLDER}/best.json", {"name": names[0], "score": 0.5})
    remove_incomplete(store, FOLDER)
    assert {name.rsplit("/", 1)[0] for name in store.list(FOLDER)} == {names[0], names[2], FOLDER}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": [2]},
        {"digests": None},
        {"digests": []},
        {"digests": {}},
        {"digests": {"model": "0", "weights": "0"}},
        {"loop": None},
        {"loop": []},
        {"loop": {"epoch": "one"}},
        {"loop": {"epoch": 1, "history": {}}},
        {"loop": {"position": 1}},
    ],
)
def test_description_of_another_shape_is_corrupt(store: Store, changes: dict[str, Any]) -> None:
    (name,) = save_epochs(store, 1)
    _write_description(store, name, {**read_description(store, name), **changes})
    with pytest.raises(CorruptError, match=r"checkpoint.json: expected"):
        read_checkpoint(store, name)
    assert newest_checkpoint(store, FOLDER) is None


def test_infinite_metrics_are_written_as_null(store: Store) -> None:
    loop = LoopState(epoch=1, history=[{"epoch": 1.0, "eval/d_prime": float("inf"), "eval/mAP": 1.0}])
    name = save_checkpoint(store, FOLDER, Checkpoint(loop, {"weight": torch.ones(1)}, description=MINE))
    assert b"Infinity" not in store.read_bytes(f"{name}/checkpoint.json")
    assert read_checkpoint(store, name).loop.history == [{"epoch": 1.0, "eval/d_prime": None, "eval/mAP": 1.0}]
