"""Compare gradients of several ranks and of one rank on the same global batch: `torchrun … gradients.py STORE OUT`.

The main rank writes the largest deviation of a parameter's gradient per precision to OUT, as JSON.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ast_model.config import ASTConfig, Precision, RegulariseConfig, TrainConfig
from ast_model.data.augment import Normalisation
from ast_model.distributed import World, join_world
from ast_model.model import AST
from ast_model.training.data import TrainingData
from ast_model.training.plan import TrainingPlan
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

MODEL = ASTConfig(num_frames=128, freq_stride=16, time_stride=16, width=64, depth=2, num_heads=1)
CONFIG = TrainConfig(
    train_splits=("balanced_train",),
    eval_split="balanced_train",
    # Micro-batches of 3, 3 and 2 clips on one rank, of 3 and 1 clips on each of two ranks.
    global_batch_size=8,
    micro_batch_size=3,
    regularise=RegulariseConfig(patchout_freq=2, patchout_time=2, drop_path=0.3),
)


def gradient_of(snapshot: Snapshot, precision: Precision, world: World) -> dict[str, Tensor]:
    """Return the gradient of the first step, averaged over the ranks."""
    config = dataclasses.replace(CONFIG, precision=precision)
    data = TrainingData(TrainingPlan(snapshot, config), MODEL.num_frames)
    torch.manual_seed(0)
    state = TrainingState(AST(MODEL).train(), config, world)
    stepper = Stepper(state, config, Normalisation(-4.27, 4.57), world)
    stepper._accumulate(0, 0, data.batches(0, range(1), world))
    return {name: value.grad.clone() for name, value in state.model.named_parameters() if value.grad is not None}


def deviation(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference relative to the parameter's gradient plus a thousandth of the whole gradient."""
    whole = torch.cat([value.flatten() for value in expected.values()]).norm()
    each = [(found[name] - value).norm() / (value.norm() + 1e-3 * whole) for name, value in expected.items()]
    return torch.stack(each).max().item()


def main(root: str, out: str) -> None:
    torch.set_num_threads(1)
    snapshot, deviations = load_snapshot(Store(root)), {}
    precisions: list[Precision] = ["fp32", "bf16"]
    with join_world("cuda" if torch.cuda.is_available() else "cpu") as world:
        for precision in precisions:
            found = gradient_of(snapshot, precision, world)
            expected = gradient_of(snapshot, precision, World(0, 1, world.device))
            assert found.keys() == expected.keys()
            deviations[precision] = deviation(found, expected)
        if world.is_main:
            Path(out).write_text(json.dumps({"num_ranks": world.size, **deviations}))


if __name__ == "__main__":
    main(*sys.argv[1:])
