"""Train on a data set with official splits, choose an epoch on `valid`, and score it on `test`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ast_model.checkpoints.async_writer import best_checkpoint
from ast_model.checkpoints.checkpoint import list_checkpoints
from ast_model.evaluation.ensemble import score_checkpoints
from ast_model.training.step_metrics import Metrics
from jobs.command_line.cli import resolve_root
from jobs.datasets.local_clips import preprocess_local_clips
from jobs.datasets.model_shape import adopt_initial_shape, log_classes
from jobs.datasets.official import read_dataset
from jobs.datasets.settings import OfficialSplitsConfig
from jobs.training.initial_weights import open_initial_weights
from jobs.training.runs import TrackedJob
from jobs.training.start_or_resume import start_or_resume
from pipeline.cluster.session import ray_session
from pipeline.store.storage import Store


def train_and_test(config: OfficialSplitsConfig) -> None:
    """Train, then print the validation and test scores of the chosen epoch and store them as {name}.json."""
    config = adopt_initial_shape(config)
    config = dataclasses.replace(config, train=open_initial_weights(config.train, config.model, config.resume))
    store, metric = Store(resolve_root(config.root)), config.dataset.metric
    clips, classes = read_dataset(config, store)
    log_classes(config, classes)
    with ray_session():
        job, history = start_or_resume(config, preprocess_local_clips(clips, classes, store))
    result = _score_test_split(config, job, history)
    store.write_json(f"{config.dataset.name}.json", result)
    print(f"validation {metric} {result['valid']:.4f}\ntest       {metric} {result['test']:.4f}   ({result['how']})")


def _score_test_split(config: OfficialSplitsConfig, job: TrackedJob, history: Sequence[Metrics]) -> dict[str, Any]:
    """Score the chosen epoch's checkpoint on `test`, which had no influence on the choice."""
    metric, store, snapshot = config.dataset.metric, job.store, job.snapshot
    epochs = [each for each in history if f"eval/{metric}" in each]
    best = best_checkpoint(store, job.folder)
    chosen = epochs[-1] if config.choose == "last" else max(epochs, key=lambda each: each[f"eval/{metric}"])
    name = best[0] if best and config.choose != "last" else list_checkpoints(store, job.folder)[-1]
    (member,) = score_checkpoints((store.url(name),), snapshot, "test", config.train.clips_per_micro_batch)
    return {
        "valid": chosen[f"eval/{metric}"],
        "test": member.evaluation.metrics_by_name[metric],
        "how": f"epoch {chosen['epoch']:.0f} of {len(epochs)}, {config.choose}",
        "checkpoint": name,
        "snapshot": snapshot.snapshot_id,
    }
