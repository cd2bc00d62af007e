"""Settings of runs on own sounds, and runs that fit only a head."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_model.config import ASTConfig, TrainConfig
from ast_model.tracking.run import TrackedRun
from jobs.command_line.run_names import new_run_name
from jobs.command_line.settings import RayConfig
from jobs.own_sounds.baseline import Baseline
from jobs.own_sounds.head_only import HeadReport, head_settings, train_head
from jobs.own_sounds.training_plan import HEAD_PRESET
from jobs.training.runs import TrackedJob, begin_run, end_run_on_exit
from pipeline.snapshots.snapshot import Snapshot


@dataclass(frozen=True)
class FinetuneRun:
    """Settings of a fine-tuning after the data was read."""

    preset: str
    data: str
    model: ASTConfig
    train: TrainConfig
    resume: str
    ray: RayConfig

    @property
    def data_name(self) -> str:
        return Path(self.data).resolve().name


@dataclass(frozen=True)
class HeadMethod:
    """Settings for fitting only a head."""

    group_of: Mapping[str, str]
    """Group of each clip, by key. Cross-validation keeps groups together."""
    faster: Sequence[str]
    """Alternatives to log with the estimated time of embedding."""


def fit_head_in_run(
    run: FinetuneRun, snapshot: Snapshot, baseline: Baseline, method: HeadMethod
) -> tuple[TrackedJob, HeadReport]:
    """Fit a head as a separate run and publish it. Returns the run and its report."""
    run = dataclasses.replace(run, preset=HEAD_PRESET, train=head_settings(run.train))
    job = begin_run(run, snapshot, new_run_name(run.preset))
    with end_run_on_exit(job):
        job.tracker.log_metrics(baseline.tracked_metrics(), step=0)
        return job, train_head(job, bool(run.ray.use_gpu), method.group_of, method.faster)


def fit_head_of_fold(
    run: FinetuneRun, snapshot: Snapshot, baseline: Baseline, method: HeadMethod, name: str, parent: TrackedRun
) -> HeadReport:
    """Fit a head as a child run. It is not published, because models of different folds can't be compared."""
    run = dataclasses.replace(run, preset=HEAD_PRESET, train=head_settings(run.train))
    job = begin_run(run, snapshot, name, parent)
    with job.tracker.end_on_exit():
        job.tracker.log_metrics(baseline.tracked_metrics(), step=0)
        return train_head(job, bool(run.ray.use_gpu), method.group_of, method.faster)
