"""Measure the effect of each setting beyond the paper on the demo's training.

    python -m bench.settings --root data/demo      the miniature's store, as made by `make demo`
    python -m bench.settings --root data/demo --names teachers --seeds 2      teachers only; they are trained once
    python -m bench.settings --names plain teachers --label-errors 0.3        with wrong labels, as in AudioSet

Trains the demo's model for each seed and setting on one thread, with equal numbers of samples and a learning-rate decay
in the last third, and prints a JSON line per training: mAP after the last epoch, and training samples per processor
second, which is robust to other work on the machine. A table follows. The teacher is the mean of two models of
different shapes, which jobs/teachers.py make scores. With `--label-errors`, teachers and students learn
from the same damaged labels, and only the evaluation has the true labels.

The miniature has 387 training clips in 15 classes, and the model has 64 patches in one row. Settings that help here may
not help on AudioSet, and vice versa.
"""

import dataclasses
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import tyro

from ast_model import recipes
from ast_model.config import ASTConfig, RegulariseConfig, ScheduleConfig, TrainConfig
from ast_model.distributed import World
from ast_model.export import export_safetensors
from ast_model.model import AST
from ast_model.pretrained.metadata import ModelMetadata
from ast_model.training.job import TrainingJob
from ast_model.training.plan import TrainingPlan
from ast_model.training.trainer import Trainer
from bench.lines import print_line
from jobs.checkpoints.teacher_settings import MakeTeacher
from jobs.checkpoints.teachers import make_teacher
from jobs.training.teacher_scores import open_teachers
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

ALONE = World(0, 1, torch.device("cpu"))
TEACHERS = {100: {}, 101: {"width": 64, "depth": 4, "patch_time": 32, "time_stride": 32}}
"""Differences from the shape of the demo's model, by seed."""
SHORT = 160
"""Draws of a short epoch, 40 % of the clips."""


class Silence:
    """Tracker that discards everything."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_late_params(self, facts: Mapping[str, str]) -> None:
        pass

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        pass


def recipe(num_epochs: int) -> TrainConfig:
    """Return the demo's recipe without weight averaging, with decays in the last third."""
    train = recipes.demo().train
    schedule = dataclasses.replace(train.schedule, num_epochs_before_decay=num_epochs - num_epochs // 3)
    return dataclasses.replace(train, num_epochs=num_epochs, schedule=schedule, average_last_epochs=0)


def settings(plain: TrainConfig, teacher: str) -> dict[str, dict[str, Any]]:
    """Return the changed settings by name."""
    schedule, shorter = plain.schedule, (plain.draws_per_epoch or 0) // SHORT
    warmup = {"num_warmup_steps": schedule.num_warmup_steps, "num_steps_per_stair": schedule.num_steps_per_stair}
    same_steps = dataclasses.replace(
        schedule,
        num_epochs_before_decay=schedule.num_epochs_before_decay * shorter,
        num_epochs_per_decay=schedule.num_epochs_per_decay * shorter,
    )
    short = {"draws_per_epoch": SHORT, "num_epochs": plain.num_epochs * shorter, "sampler": "without_replacement"}
    return {
        "plain": {},
        "teachers": {"teachers": (teacher,), "teacher_share": 0.9},
        "patchout": {"regularise": RegulariseConfig(patchout_time=26)},
        "drop path": {"regularise": RegulariseConfig(drop_path=0.1)},
        "layer decay": {"layer_decay": 0.75},
        "cosine": {"schedule": ScheduleConfig("cosine", **warmup)},
        "short epochs": {**short, "schedule": same_steps},
    }


def train(
    snapshot: Snapshot, run: str, config: TrainConfig, model: ASTConfig | None = None
) -> tuple[Trainer, float, float]:
    """Train. Returns the trainer, the last mAP, and samples per processor second without evaluations."""
    model = dataclasses.replace(model or recipes.demo().model, num_classes=len(snapshot.labels))
    trainer = Trainer(
        TrainingJob(config, model, snapshot, run, Silence()),
        ALONE,
        teachers=open_teachers(TrainingPlan(snapshot, config)),
    )
    evaluating_s = 0.0
    evaluate_plainly = trainer._evaluate

    def timed(model: AST) -> Any:
        nonlocal evaluating_s
        started = time.process_time()
        evaluation = evaluate_plainly(model)
        evaluating_s += time.process_time() - started
        return evaluation

    trainer._evaluate = timed
    started = time.process_time()
    history = trainer.run()
    seconds = time.process_time() - started - evaluating_s
    return trainer, history[-1]["eval/mAP"], config.num_epochs * trainer.plan.num_draws / seconds


def with_label_errors(snapshot: Snapshot, splits: tuple[str, ...], share: float) -> Snapshot:
    """Permute the labels among a share of the training clips, which preserves the class counts."""
    random = np.random.default_rng(0)
    rows = snapshot.rows_of(splits)
    damaged = np.sort(random.choice(rows, round(share * len(rows)), replace=False))
    labels_of = np.arange(len(snapshot.index))
    labels_of[damaged] = random.permutation(damaged)
    place = snapshot.index.column_names.index("labels")
    labels = snapshot.index["labels"].combine_chunks().take(pa.array(labels_of))
    return dataclasses.replace(snapshot, index=snapshot.index.set_column(place, "labels", labels))


def train_teacher(snapshot: Snapshot, plain: TrainConfig, teacher: str, work: str) -> None:
    """Train models of two shapes, and make a teacher of them with jobs/teachers.py."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = []
        for seed, shape in TEACHERS.items():
            model = dataclasses.replace(recipes.demo().model, **shape)
            config = dataclasses.replace(plain, seed=seed)
            trainer, score, _ = train(snapshot, f"{work}-teacher-{seed}", config, model)
            norm = trainer.job.normalisation
            checkpoints.append(f"{folder}/{seed}.safetensors")
            metadata = ModelMetadata(snapshot.labels.names, norm.mean, norm.std)
            export_safetensors(trainer.state.model, Path(checkpoints[-1]), metadata)
            print_line("teacher", "mAP", score, seed=seed)
        root = snapshot.store.root
        make_teacher(MakeTeacher(teacher, tuple(checkpoints), split=plain.train_splits, root=root))


def describe(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def main(
    root: str = "data/demo",
    names: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    num_epochs: int = 10,
    label_errors: float = 0.0,
) -> None:
    """Compare settings on the miniature in the store `root`. names: settings; default: all."""
    torch.set_num_threads(1)
    work, plain = f"settings-{secrets.token_hex(2)}", recipe(num_epochs)
    snapshot = with_label_errors(load_snapshot(Store(root)), plain.train_splits, label_errors)
    teacher = f"settings-teacher-{num_epochs}-{round(100 * label_errors)}"
    chosen = {name: changes for name, changes in settings(plain, teacher).items() if name in names or not names}
    if "teachers" in chosen and not snapshot.store.exists(f"teachers/{teacher}/teacher.json"):
        train_teacher(snapshot, plain, teacher, work)
    scores: dict[str, list[float]] = {name: [] for name in chosen}
    rates: dict[str, list[float]] = {name: [] for name in chosen}
    for seed in seeds:
        for number, (name, changes) in enumerate(chosen.items()):
            config = dataclasses.replace(plain, **changes, seed=seed)
            _, score, rate = train(snapshot, f"{work}-{number}-{seed}", config)
            scores[name].append(score)
            rates[name].append(rate)
            print_line(name, "mAP", score, seed=seed, samples_per_cpu_s=rate)
    print("\n| setting | mAP | samples per processor second |\n|---|---|---|")
    for name in chosen:
        print(f"| {name} | {describe(scores[name])} | {np.mean(rates[name]):.0f} |")


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
