"""Check on a CPU that balanced draws, averaged weights and pretrained weights help learning.

python -m bench.learning --root data/demo      the miniature's store, as made by `make demo`; needs espeak-ng

Prints one JSON line per training, and tables of means and extremes over the seeds.
"""

import dataclasses
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from ast_model import recipes
from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.config import ASTConfig, AugmentConfig, Sampler, ScheduleConfig, TrainConfig
from ast_model.distributed import World
from ast_model.evaluation.predictions import AVERAGE, LAST, load_predictions, predictions_name
from ast_model.training.job import TrainingJob
from ast_model.training.step_metrics import Metrics
from ast_model.training.trainer import Trainer
from bench.words import make_words
from pipeline.config import FetchConfig, PreprocessConfig
from pipeline.convert import Conversion, convert_shard
from pipeline.metadata import load_metadata
from pipeline.recordings.speechcommands import read_speech_commands
from pipeline.recordings.tables import MEDIA_TABLE, write_tables
from pipeline.shards.ledger import plan_shards, read_sidecar_table
from pipeline.snapshots.build import build_snapshot
from pipeline.snapshots.snapshot import Snapshot, load_snapshot
from pipeline.sources.table import ListedSource
from pipeline.store.storage import Store

ALONE = World(0, 1, torch.device("cpu"))
NUM_RARE = 5
AS_MANY_DRAWS: Mapping[str, Any] = {
    "num_epochs": 41,
    "draws_per_epoch": None,
    "average_last_epochs": 8,
    "schedule": ScheduleConfig(num_warmup_steps=100, num_steps_per_stair=5, num_epochs_before_decay=41),
}
"""Uniform draws use each clip once per epoch, so the demo's 16,000 draws take 41 epochs; the last fifth is averaged."""


class Silence:
    """Tracker that discards everything."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_late_params(self, facts: Mapping[str, str]) -> None:
        pass

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        pass


def train(snapshot: Snapshot, run: str, model: ASTConfig, config: TrainConfig) -> list[Metrics]:
    job = TrainingJob(config, dataclasses.replace(model, num_classes=len(snapshot.labels)), snapshot, run, Silence())
    return Trainer(job, ALONE).run()


def compare_samplers(snapshot: Snapshot, seeds: Iterable[int], work: str) -> dict[str, list[float]]:
    """Train on the miniature with both samplers. Returns mAP of all and rare classes, for last and averaged weights."""
    recipe = recipes.demo()
    counts = snapshot.class_counts(recipe.train.train_splits)
    rare = np.argsort(counts, kind="stable")[:NUM_RARE]
    found: dict[str, list[float]] = defaultdict(list)
    samplers: tuple[Sampler, ...] = ("balanced", "uniform")
    for seed in seeds:
        for sampler in samplers:
            run = f"{work}-{sampler}-{seed}"
            more = AS_MANY_DRAWS if sampler == "uniform" else {}
            train(snapshot, run, recipe.model, dataclasses.replace(recipe.train, sampler=sampler, seed=seed, **more))
            for name in (LAST, AVERAGE):
                metrics = load_predictions(snapshot.store, predictions_name(run, name)).evaluation.metrics
                found[f"{sampler} {name} all"].append(metrics.mAP)
                found[f"{sampler} {name} rare"].append(float(metrics.average_precision[rare].mean()))
            say(seed=seed, **{key: values[-1] for key, values in found.items() if key.startswith(sampler)})
    return found


def compare_starts(snapshot: Snapshot, seeds: Iterable[int], work: str, weights: Mapping[int, str]) -> dict[str, list]:
    """Train on words, from the miniature's weights and from random ones. Returns accuracy after each epoch."""
    model = dataclasses.replace(recipes.demo().model, num_frames=128)
    found: dict[str, list[list[float]]] = defaultdict(list)
    for seed in seeds:
        for start in ("scratch", "miniature"):
            config = TrainConfig(
                train_splits=("train",),
                eval_split="test",
                init=weights[seed] if start == "miniature" else "",
                num_epochs=8,
                sampler="uniform",
                global_batch_size=16,
                micro_batch_size=16,
                learning_rate=5e-4,
                schedule=ScheduleConfig(num_warmup_steps=20, num_steps_per_stair=2, num_epochs_before_decay=6),
                augment=AugmentConfig(mixup_probability=0.3, max_freq_mask_bins=8, max_time_mask_frames=16),
                loss="ce",
                seed=seed,
            )
            history = train(snapshot, f"{work}-{start}-{seed}", model, config)
            found[start].append([epoch["eval/accuracy"] for epoch in history])
            say(start=start, seed=seed, accuracy=found[start][-1])
    return found


def convert_words(folder: Path) -> Snapshot:
    """Synthesise the words and convert them to a snapshot, without Ray."""
    make_words(folder / "words")
    recordings, words = read_speech_commands(folder / "words")
    tables = folder / "tables"
    splits = write_tables(recordings, words, tables)
    fetch = FetchConfig()
    store = Store(str(folder / "store"))
    conversion = Conversion(store, ListedSource(str(tables / MEDIA_TABLE), fetch), fetch, keep_audio=False)
    metadata = load_metadata(PreprocessConfig(metadata=str(tables), splits=splits))
    for plan in plan_shards(metadata.segments, read_sidecar_table(store, conversion.fingerprint), 200):
        convert_shard(plan, conversion)
    return build_snapshot(store, metadata, keep_audio=False)


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def describe(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main(root: str = "data/demo", num_seeds: int = 3) -> None:
    """Run both comparisons with the miniature in the store `root`."""
    torch.set_num_threads(1)
    miniature, seeds = load_snapshot(Store(root)), range(num_seeds)
    with tempfile.TemporaryDirectory() as folder:
        work = f"learning-{Path(folder).name}"
        samplers = compare_samplers(miniature, seeds, work)
        names = {seed: list_checkpoints(miniature.store, f"runs/{work}-balanced-{seed}/average")[-1] for seed in seeds}
        weights = {seed: miniature.store.url(name) for seed, name in names.items()}
        starts = compare_starts(convert_words(Path(folder)), seeds, work, weights)
    print("\n| draws | weights | mAP, all classes | mAP, rare classes |\n|---|---|---|---|")
    for sampler in ("balanced", "uniform"):
        for name in (LAST, AVERAGE):
            row = (describe(samplers[f"{sampler} {name} {what}"]) for what in ("all", "rare"))
            print(f"| {sampler} | {name} | {' | '.join(row)} |")
    print("\n| accuracy on words after epoch | " + " | ".join(starts) + " |\n|---|---|---|")
    for epoch in range(len(starts["scratch"][0])):
        row = (describe([curve[epoch] for curve in starts[start]]) for start in starts)
        print(f"| {epoch + 1} | {' | '.join(row)} |")


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
