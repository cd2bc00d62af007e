"""Start or resume a run on Ray, for commands that train on data sets other than AudioSet."""

from collections.abc import Mapping
from typing import Protocol

from ast_model.tracking.run import TrackedRun
from ast_model.training.step_metrics import Metrics
from jobs.command_line.run_names import new_run_name
from jobs.command_line.settings import RayConfig
from jobs.training.ray_train import train_on_ray
from jobs.training.runs import RunSettings, TrackedJob, begin_run, end_run_on_exit, resume_run
from pipeline.snapshots.snapshot import Snapshot


class RayRunSettings(RunSettings, Protocol):
    """Settings for a command that trains on Ray."""

    @property
    def resume(self) -> str: ...
    @property
    def ray(self) -> RayConfig: ...


def start_or_resume(
    config: RayRunSettings,
    snapshot: Snapshot,
    run: str = "",
    parent: TrackedRun | None = None,
    initial_metrics: Mapping[str, float] | None = None,
) -> tuple[TrackedJob, list[Metrics]]:
    """Train a new run or resume `config.resume`. Returns its job and the metrics of each epoch.

    run: name of a new run; generated if empty. initial_metrics: metrics to log at step 0 of a new run. Ray must be
    running.
    """
    if config.resume:
        job = resume_run(config.resume, snapshot.store, config)
    else:
        job = begin_run(config, snapshot, run or new_run_name(config.preset), parent)
        if initial_metrics:
            job.tracker.log_metrics(initial_metrics, step=0)
            job.tracker.close()  # only one process may log to a run, from now on the main rank
    with end_run_on_exit(job):
        return job, train_on_ray(job, config.ray)
