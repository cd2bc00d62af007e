"""Train the official AST with its own loop, on the batches that this project's trainer used, and print the distances.

    git clone https://github.com/YuanGongND/ast /tmp/ast
    pip install --no-deps --target /tmp/official timm==0.4.5 torchvision
    python -m scripts.against_official --ast /tmp/ast --packages /tmp/official --root data/demo

Needs the store of `make demo`. Ours is the Trainer with a tiny AST of 256 frames from random weights, in float32. The
official `ASTModel` starts from the same weights and is trained by the official `traintest.train`. Both see the same
augmented batches. Prints one JSON line per quantity.
"""

import argparse
import contextlib
import copy
import io
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from ast_model.config import ASTConfig, ScheduleConfig, TrainConfig
from ast_model.distributed import World
from ast_model.metrics import tagging_metrics
from ast_model.model import AST
from ast_model.pretrained.layouts import TIMM, from_layout, to_layout
from ast_model.training.job import TrainingJob
from ast_model.training.trainer import Trainer
from bench.lines import print_line
from bench.settings import Silence
from pipeline.fbank import compute_fbank
from pipeline.snapshots.snapshot import load_snapshot
from pipeline.store.layout import RunFiles
from pipeline.store.storage import Store

NUM_FRAMES, DEPTH, RUN = 256, 12, "against-official"


@dataclass
class Record:
    """A training of ours: its batches, its evaluation and its weights before and after."""

    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    eval_inputs: list[Tensor] = field(default_factory=list)
    eval_targets: Tensor = field(default_factory=lambda: torch.empty(0))
    before: dict[str, Tensor] = field(default_factory=dict)
    model: AST = field(default_factory=lambda: AST(ASTConfig.nano(depth=1)))
    mAP: float = 0.0


def train_ours(root: str, config: TrainConfig) -> Record:
    """Run our trainer and record the model's inputs and targets."""
    snapshot = load_snapshot(Store(root))
    shape = ASTConfig.tiny(num_classes=len(snapshot.labels), num_frames=NUM_FRAMES)
    job = TrainingJob(config, shape, snapshot, RUN, Silence())
    trainer, record = Trainer(job, World(0, 1, torch.device("cpu"))), Record()
    record.model = trainer.state.model
    record.before = copy.deepcopy(record.model.state_dict())
    inputs: list[Tensor] = []

    def keep_input(model: AST, arguments: tuple[Any, ...]) -> None:
        (inputs if model.training else record.eval_inputs).append(arguments[0].detach().clone())

    def keep_targets(_: Any, arguments: tuple[Any, ...]) -> None:
        record.batches.append((inputs[-1], arguments[2].clone()))

    hook = record.model.register_forward_pre_hook(keep_input)
    trainer.stepper.ranked_losses.register_forward_hook(lambda module, arguments, _: keep_targets(module, arguments))
    try:
        record.mAP = trainer.run()[-1]["eval/mAP"]
    finally:
        hook.remove()
        snapshot.store.remove(RunFiles(RUN).folder)
    num_batches = len(record.eval_inputs) // config.num_epochs
    record.eval_inputs = record.eval_inputs[:num_batches]
    record.eval_targets = torch.from_numpy(trainer.data.eval_clips.targets.toarray()).float()
    return record


class Epochs:
    """A loader for the official loop: each iteration yields the recorded batches of the next epoch."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]], num_steps: int):
        self.dataset, self.batches, self.num_steps, self.epoch = range(len(batches)), batches, num_steps, 0

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = self.epoch * self.num_steps
        self.epoch += 1
        yield from self.batches[start : start + self.num_steps]


def import_official(checkout: Path, packages: Path) -> tuple[Any, Any, Any]:
    """Import the official model, training loop and data loader, with stand-ins for modules that no longer install."""
    containers = types.ModuleType("torch._six")
    vars(containers)["container_abcs"] = __import__("collections.abc").abc
    sys.modules.update({"torch._six": containers, "wget": types.ModuleType("wget")})
    sys.path[:0] = [str(packages), str(checkout / "src")]
    with warnings.catch_warnings(action="ignore"):
        import dataloader  # pyright: ignore[reportMissingImports]
        import traintest  # pyright: ignore[reportMissingImports]
        from models import ASTModel  # pyright: ignore[reportMissingImports]
    return ASTModel, traintest, dataloader


def train_official(record: Record, config: TrainConfig, official: tuple[Any, Any, Any], warm_up: bool) -> Any:
    """Run the official loop from the same weights. Return the official model."""
    make_model, traintest, _ = official
    num_classes = record.eval_targets.shape[1]
    model = make_model(num_classes, 10, 10, 128, NUM_FRAMES, False, False, "tiny224", verbose=False)
    names = to_layout(record.before, TIMM, DEPTH, "v.")
    missing = model.load_state_dict(names, strict=False)
    assert not missing.unexpected_keys and all("v.head" in name for name in missing.missing_keys), missing
    validation = list(
        zip(record.eval_inputs, record.eval_targets.split([len(batch) for batch in record.eval_inputs]), strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "models").mkdir()
        settings = argparse.Namespace(
            exp_dir=folder,
            lr=config.learning_rate,
            n_epochs=config.num_epochs,
            n_print_steps=1000,
            warmup=warm_up,
            lrscheduler_start=2,
            lrscheduler_step=1,
            lrscheduler_decay=0.5,
            loss="BCE",
            metrics="mAP",
            dataset="audioset",
            wa=False,
        )
        loader = Epochs(record.batches, len(record.batches) // config.num_epochs)
        traintest.train(model, loader, validation, settings)
    return model.eval()


def compare(record: Record, theirs: Any, official: tuple[Any, Any, Any]) -> None:
    """Print the distances of weights, logits, metrics and features."""
    _, traintest, dataloader = official
    weights = from_layout(theirs.state_dict(), TIMM.tensor_names(DEPTH, "v."))
    ours = record.model.eval().state_dict()
    print_line("weights, of the distance moved", "1", _share_of_move(ours, weights, record.before))
    # The softmax ignores key biases, so rounding alone moves them.
    without = [_without_key_biases(each) for each in (ours, weights, record.before)]
    print_line("weights without key biases", "1", _share_of_move(*without))
    with torch.inference_mode():
        logits = [torch.cat([model(batch) for batch in record.eval_inputs]) for model in (record.model, theirs)]
    print_line("logits, largest difference", "1", float((logits[0] - logits[1]).abs().max()))
    scores = logits[1].sigmoid().numpy()
    stats = traintest.calculate_stats(scores, record.eval_targets.numpy())
    metrics = tagging_metrics(scores, record.eval_targets.numpy())
    print_line("mAP of the official scores, official code", "1", float(np.mean([each["AP"] for each in stats])))
    print_line("mAP of the official scores, our code", "1", metrics.mAP)
    print_line("mAP of our training", "1", record.mAP)
    waveform = torch.randn(1, 32_000, generator=torch.Generator().manual_seed(0)) / 10
    dataloader.torchaudio.load = lambda name: (waveform, 16_000)
    reader = object.__new__(dataloader.AudiosetDataset)
    reader.melbins, reader.audio_conf = 128, {"target_length": 198}
    difference = compute_fbank((waveform - waveform.mean())[0]) - reader._wav2fbank("noise.wav")[0]
    print_line("features, largest difference", "1", float(difference.abs().max()))


def _share_of_move(ours: dict[str, Tensor], theirs: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Return the distance between both results, relative to the distance that ours moved."""
    apart, moved = (torch.cat([(ours[name] - each[name]).flatten() for name in ours]) for each in (theirs, before))
    return float(apart.norm() / moved.norm())


def _without_key_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    queries_and_values = {
        name: torch.cat([value.chunk(3)[0], value.chunk(3)[2]])
        for name, value in weights.items()
        if name.endswith("attention.qkv.bias")
    }
    return {**weights, **queries_and_values}


def main(
    ast: Path,
    packages: Path = Path("/tmp/official"),
    root: str = "data/demo",
    num_steps: int = 60,
    batch_size: int = 12,
    warm_up: bool = True,
) -> None:
    """Run both trainings for two epochs. num_steps: steps per epoch. warm_up: the official 1,000 steps of warm-up."""
    config = TrainConfig(
        num_epochs=2,
        draws_per_epoch=num_steps * batch_size,
        global_batch_size=batch_size,
        micro_batch_size=batch_size,
        learning_rate=1e-3 if warm_up else 1e-4,
        schedule=ScheduleConfig(num_warmup_steps=1000 if warm_up else 0),
        precision="fp32",
    )
    official = import_official(ast, packages)
    record = train_ours(root, config)
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        theirs = train_official(record, config, official, warm_up)
    compare(record, theirs, official)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
