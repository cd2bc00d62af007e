"""Measure what each setting past the paper does to the demo's training: the same recipe with and without it.

    python -m bench.settings --root data/demo      a store with the miniature, as `make demo` leaves it

Trains the demo's model for each seed and setting on one thread, and prints a JSON line per training: mAP after the
last epoch (of the moving average, where there is one) and training samples per processor second, which other work on
the machine does not change much. Then a table. The teacher is the mean of the plain runs of two seeds more.

The miniature has 387 training clips in 15 classes, and the model 64 patches in one row: what helps here need not help
on AudioSet, and the other way round.
"""

import dataclasses
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import tyro

from ast_model import recipes
from ast_model.config import RegulariseConfig, ScheduleConfig, TrainConfig
from ast_model.data.loader import BatchReader
from ast_model.distributed import World
from ast_model.evaluation.evaluate import evaluate
from ast_model.evaluation.predictions import predictions_name, save_predictions
from ast_model.model import AST
from ast_model.training.job import Job
from ast_model.training.trainer import Trainer
from bench.lines import print_line
from jobs.config import ImportTeacher
from jobs.launch.teachers import import_teacher
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.store.storage import Store

ALONE = World(0, 1, torch.device("cpu"))
NUM_TEACHERS = 2
SHORT = 160
"""Draws of a short epoch: 0.4 of the clips."""


class Silence:
    """Tells nobody."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_facts(self, facts: Mapping[str, str]) -> None:
        pass

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        pass


def recipe(num_epochs: int) -> TrainConfig:
    """Return the demo's recipe without the average of its last epochs, decaying over its last third."""
    train = recipes.demo().train
    schedule = dataclasses.replace(train.schedule, num_epochs_before_decay=num_epochs - num_epochs // 3)
    return dataclasses.replace(train, num_epochs=num_epochs, schedule=schedule, average_last_epochs=0)


def settings(plain: TrainConfig, teachers: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return what is changed, by name."""
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
        "patchout of 26 of 64 columns": {"regularise": RegulariseConfig(patchout_time=26)},
        "EMA of 0.99": {"ema_decay": 0.99},
        "drop path 0.1": {"regularise": RegulariseConfig(drop_path=0.1)},
        "layer decay 0.75": {"layer_decay": 0.75},
        "cosine": {"schedule": ScheduleConfig("cosine", **warmup)},
        "short weighted epochs of 160": {**short, "schedule": same_steps},
        "teachers": {"teachers": teachers},
    }


def train(snapshot: Snapshot, run: str, config: TrainConfig) -> tuple[Trainer, float, float]:
    """Train; return the trainer, the last mAP, and samples per processor second without the evaluations."""
    model = dataclasses.replace(recipes.demo().model, num_classes=len(snapshot.labels))
    trainer = Trainer(Job(config, model, snapshot, run, Silence()), ALONE)
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
    return trainer, history[-1]["eval/mAP"], config.num_epochs * trainer.data.num_draws / seconds


def keep_teacher(trainer: Trainer) -> tuple[str, ...]:
    """Score each training split and keep the scores, as jobs/evaluate.py does; return their names."""
    job, names = trainer.job, []
    for split in job.config.train_splits:
        rows = job.snapshot.rows_of((split,))
        clips = BatchReader(trainer.data.clips.reader, rows, job.snapshot.targets(rows), job.model.num_frames)
        evaluation = evaluate(trainer.state.model, clips, ALONE, job.normalisation, batch_size=16)
        names.append(predictions_name(job.run, split))
        save_predictions(evaluation, job.snapshot, (job.config.train_splits, split), names[-1], job.config.num_epochs)
    paths = tuple(job.store.path(name) for name in names)
    import_teacher(ImportTeacher(job.run, paths, root=job.store.root))
    return (job.run,)


def describe(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def main(root: str = "data/demo", num_seeds: int = 2, num_epochs: int = 10) -> None:
    """Compare; `root`: a store with the miniature."""
    torch.set_num_threads(1)
    snapshot, work, plain = load_snapshot(Store(root)), f"settings-{secrets.token_hex(2)}", recipe(num_epochs)
    teachers: tuple[str, ...] = ()
    for number in range(NUM_TEACHERS):
        trainer, score, _ = train(snapshot, f"{work}-teacher-{number}", dataclasses.replace(plain, seed=100 + number))
        teachers += keep_teacher(trainer)
        print_line("teacher", "mAP", score, seed=100 + number)
    scores: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    for seed in range(num_seeds):
        for number, (name, changes) in enumerate(settings(plain, teachers).items()):
            config = dataclasses.replace(plain, **changes, seed=seed)
            _, score, rate = train(snapshot, f"{work}-{number}-{seed}", config)
            scores.setdefault(name, []).append(score)
            rates.setdefault(name, []).append(rate)
            peer = None if name == "plain" else ("plain", scores["plain"][-1])
            print_line(name, "mAP", score, peer, seed=seed, samples_per_cpu_s=rate)
    print("\n| setting | mAP | samples per processor second, over plain |\n|---|---|---|")
    for name in scores:
        ratio = np.mean([rate / base for rate, base in zip(rates[name], rates["plain"], strict=True)])
        print(f"| {name} | {describe(scores[name])} | {ratio:.2f} |")


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
