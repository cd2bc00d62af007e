"""Report the progress of a training run to the tracker, the log and the store."""

import logging
import math
from collections.abc import Mapping, Sequence

from ast_model.checkpoints.async_writer import SavedCheckpoint
from ast_model.checkpoints.checkpoint import LoopState, list_checkpoints
from ast_model.distributed import World
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.predictions import AVERAGE, BEST, LAST, predictions_name, save_predictions
from ast_model.training.job import Launcher, TrainingJob
from ast_model.training.plan import TrainingPlan
from ast_model.training.step_metrics import Metrics, StepResult

log = logging.getLogger(__name__)

MAX_KEYS_SHOWN = 24


class Reporter:
    """Logs on the main rank. Other ranks log only the keys of their samples in skipped steps."""

    def __init__(self, job: TrainingJob, world: World, launcher: Launcher | None = None):
        self.job, self.world, self.launcher = job, world, launcher or Launcher()

    def log_steps(self, metrics: Metrics, step: int) -> None:
        """Log the finite metrics of a step. Steps count from the start of the run."""
        if self.world.is_main:
            finite = finite_metrics(metrics)
            self.job.tracker.log_metrics(finite, step)
            self.launcher.report_steps(finite)

    def log_history(self, history: Sequence[Metrics]) -> None:
        """Log earlier epochs again after a resume, because a lost machine may not have sent their metrics.

        The tracker skips epochs that the server has.
        """
        if not self.world.is_main:
            return
        store, folder = self.job.store, self.job.folder
        existing = list_checkpoints(store, folder)
        for metrics in history:
            epoch = int(metrics["epoch"])
            name = LoopState(epoch=epoch).name
            if f"{folder}/{name}" in existing and "eval/mAP" in metrics:
                self.job.tracker.log_checkpoint(name, store.url(f"{folder}/{name}"), metrics)
            else:
                values = {key: value for key, value in metrics.items() if key != "epoch"}
                self.job.tracker.log_metrics(values, epoch)

    def log_device(self, facts: Mapping[str, str]) -> None:
        """Log facts about the device."""
        if self.world.is_main:
            log.info("%s", ", ".join(f"{name.removeprefix('device.')} {value}" for name, value in facts.items()))
            self.job.tracker.log_late_params(facts)

    def log_skipped(self, result: StepResult, epoch: int) -> None:
        """Log the keys of this rank's samples in a skipped step."""
        are_bad = result.is_bad_B.cpu().numpy()
        rows = result.rows[are_bad] if are_bad.any() else result.rows
        reason = "samples whose loss is not finite" if are_bad.any() else "the gradient is not finite; its samples"
        if are_bad.any() or self.world.is_main:
            keys = self.job.snapshot.index["key"].take(rows).to_pylist()
            shown = ", ".join(keys[:MAX_KEYS_SHOWN]) + (" …" if len(keys) > MAX_KEYS_SHOWN else "")
            log.warning("epoch %d, step %d skipped: %s: %s", epoch + 1, result.step + 1, reason, shown)

    def log_epoch(self, history: Sequence[Metrics], evaluation: Evaluation) -> None:
        """Log the last epoch of the history. Save its scores if it is the final or the best epoch so far."""
        epoch = int(history[-1]["epoch"])
        self.launcher.report_epoch(finite_metrics(history[-1]), f"{self.job.folder}/{LoopState(epoch=epoch).name}")
        if not self.world.is_main:
            return
        log.info("epoch %d: %s", epoch, _line(history[-1]))
        *before, score = (metrics[f"eval/{evaluation.main_metric}"] for metrics in history)
        if score > max(before, default=-math.inf):
            self._save_predictions(BEST, evaluation, epoch)
        if epoch == self.job.config.num_epochs:
            self._save_predictions(LAST, evaluation, epoch)

    def log_average(self, history: Sequence[Metrics], evaluation: Evaluation, num_averaged: int) -> None:
        """Log the metrics of the averaged weights, which are the last in the history, and save their scores."""
        last = self.job.config.num_epochs
        checkpoint = f"{self.job.average_folder}/{LoopState(epoch=last).name}"
        self.launcher.report_epoch(finite_metrics(history[-1]), checkpoint)
        if not self.world.is_main:
            return
        log.info("average of epochs %d to %d: %s", last - num_averaged + 1, last, _line(history[-1]))
        self._save_predictions(AVERAGE, evaluation, last)

    def _save_predictions(self, name: str, evaluation: Evaluation, epoch: int) -> None:
        """Save an evaluation's scores, for figures and comparisons of runs."""
        splits = self.job.config.train_splits, self.job.config.eval_split
        coverage = TrainingPlan(self.job.snapshot, self.job.config).eval_coverage
        name = predictions_name(self.job.run, name)
        save_predictions(evaluation, self.job.snapshot, splits, name, epoch, coverage)

    def log_checkpoints(self, saved: Sequence[SavedCheckpoint]) -> None:
        """Log written checkpoints that have an evaluation."""
        for checkpoint in saved:
            history, address = checkpoint.description["loop"]["history"], self.job.snapshot.store.url(checkpoint.name)
            if checkpoint.name.startswith(self.job.average_folder):
                self.job.tracker.log_checkpoint(AVERAGE, address, history[-1])
            elif "score" in checkpoint.description:
                self.job.tracker.log_checkpoint(checkpoint.name.split("/")[-1], address, history[-1])


def finite_metrics(metrics: Mapping[str, float | None]) -> Metrics:
    """Drop metrics that are infinite, NaN or None, which stands for both in JSON."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


def eval_metrics(evaluation: Evaluation, prefix: str) -> Metrics:
    """Return an evaluation's metrics with prefixed names for the history and the tracker."""
    return {f"{prefix}/{name}": value for name, value in evaluation.metrics_by_name.items()}


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "epoch")
