"""Fixtures for trainings that take seconds."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ast_model.config import ASTConfig, AugmentConfig, CheckpointConfig, ScheduleConfig, TrainConfig
from ast_model.training.job import TrainingJob
from pipeline.snapshots.snapshot import Snapshot
from pipeline.store.storage import Store
from tests.ast_model.training.alone import NUM_STEPS


@dataclass
class Notes:
    """Tracker that records all calls."""

    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    checkpoints: list[str] = field(default_factory=list)
    facts: list[dict[str, str]] = field(default_factory=list)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append((step, dict(metrics)))

    def log_late_params(self, facts: Mapping[str, str]) -> None:
        self.facts.append(dict(facts))

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None:
        self.checkpoints.append(name)


@pytest.fixture
def make_job(snapshot: Snapshot, tmp_path: Path) -> Callable[..., TrainingJob]:
    """Return a function that creates jobs by run and settings, with the small store's clips and a private store."""
    (tmp_path / "shards").symlink_to(snapshot.store.path("shards"))
    own = dataclasses.replace(snapshot, store=Store(str(tmp_path)))
    config = TrainConfig(
        num_epochs=2,
        draws_per_epoch=4 * NUM_STEPS,
        global_batch_size=4,
        micro_batch_size=2,
        learning_rate=1e-3,
        schedule=ScheduleConfig(num_warmup_steps=2, num_steps_per_stair=1),
        augment=AugmentConfig(max_freq_mask_bins=16, max_time_mask_frames=96),
        log_every_steps=2,
        checkpoints=CheckpointConfig(every_minutes=None),
    )
    model = ASTConfig(
        len(snapshot.labels), patch_time=32, freq_stride=16, time_stride=32, width=16, depth=2, num_heads=2
    )

    def make(run: str = "run", **settings: Any) -> TrainingJob:
        return TrainingJob(dataclasses.replace(config, **settings), model, own, run, Notes())

    return make
