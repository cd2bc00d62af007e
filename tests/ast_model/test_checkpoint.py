import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from ast_model.checkpoint import (
    Checkpoint,
    Position,
    list_checkpoints,
    load_optimizer_state,
    newest_checkpoint,
    optimizer_state,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from pipeline.errors import CorruptError, MismatchError
from pipeline.storage import Store

FOLDER = "runs/one/checkpoints"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def make_training() -> tuple[nn.Module, torch.optim.Optimizer, list[str]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.95, 0.999), weight_decay=0.01)
    return model, optimizer, [name for name, _ in model.named_parameters()]


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()


def save_epochs(store: Store, num_epochs: int) -> list[str]:
    return [
        save_checkpoint(store, FOLDER, Checkpoint(Position(epoch), {"weight": torch.full((3,), float(epoch))}))
        for epoch in range(num_epochs)
    ]


def test_a_training_goes_on_bit_for_bit(store: Store) -> None:
    model, optimizer, names = make_training()
    for step in range(3):
        take_step(model, optimizer, step)
    average = {name: value / 3 for name, value in model.state_dict().items()}
    saved = Checkpoint(
        Position(2, 5), model.state_dict(), optimizer_state(optimizer, names), average, 3, {"history": [{"loss": 0.1}]}
    )
    read = read_checkpoint(store, save_checkpoint(store, FOLDER, saved))
    assert (read.position, read.num_averaged) == (Position(2, 5), 3)
    assert read.description["history"] == [{"loss": 0.1}]
    for part in ("model", "optimizer", "average"):
        torch.testing.assert_close(getattr(read, part), getattr(saved, part), rtol=0, atol=0)

    other, other_optimizer, _ = make_training()
    other.load_state_dict(read.model)
    load_optimizer_state(other_optimizer, names, read.optimizer)
    take_step(model, optimizer, seed=9)
    take_step(other, other_optimizer, seed=9)
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert optimizer_state(other_optimizer, names).keys() == optimizer_state(optimizer, names).keys()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0{}      "),
        ("model.safetensors", b""),
        ("checkpoint.json", b'{"format": 1, "posit'),
        ("checkpoint.json", b""),
    ],
)
def test_a_broken_newest_one_is_said_and_the_one_before_is_taken(
    store: Store, caplog: pytest.LogCaptureFixture, file: str, content: bytes
) -> None:
    newest = save_epochs(store, 3)[-1]
    Path(store.path(f"{newest}/{file}")).write_bytes(content)
    with pytest.raises(CorruptError, match=f"epoch-0002.*{file}"):
        read_checkpoint(store, newest)
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(store, FOLDER)
    assert found is not None
    assert found.position == Position(1)
    assert f"epoch-0002-step-00000000/{file}" in caplog.text
    assert "going back to the checkpoint before" in caplog.text


def test_one_flipped_bit_is_found(store: Store) -> None:
    file = Path(store.path(f"{save_epochs(store, 1)[0]}/model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptError, match="its digest differs"):
        read_checkpoint(store, f"{FOLDER}/{Position().name}")


def test_a_checkpoint_without_description_does_not_count(store: Store) -> None:
    # As a run that was killed while saving leaves it.
    names = save_epochs(store, 2)
    store.remove(f"{names[-1]}/checkpoint.json")
    assert list_checkpoints(store, FOLDER) == names[:1]


def test_none_is_no_error(store: Store) -> None:
    assert newest_checkpoint(store, FOLDER) is None


def test_only_the_newest_are_kept(store: Store) -> None:
    names = save_epochs(store, 4)
    prune_checkpoints(store, FOLDER, num_kept=2)
    assert list_checkpoints(store, FOLDER) == names[2:]
    assert store.list(FOLDER) == [
        f"{name}/{file}" for name in names[2:] for file in ("checkpoint.json", "model.safetensors")
    ]


def test_another_format_is_refused(store: Store) -> None:
    name = save_epochs(store, 1)[0]
    file = Path(store.path(f"{name}/checkpoint.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))
    with pytest.raises(MismatchError, match="expected a checkpoint of format 1, found 99"):
        newest_checkpoint(store, FOLDER)


def test_names_sort_by_position() -> None:
    positions = [Position(epoch, step) for epoch in (0, 9, 10, 100) for step in (0, 99, 100_000)]
    assert [position.name for position in positions] == sorted(position.name for position in positions)
    assert dataclasses.asdict(positions[1]) == {"epoch": 0, "step": 99}
