"""What a training tells: metrics and checkpoints to the tracker, lines to the log; and the scores that it keeps."""

import logging
import math
from collections.abc import Sequence

from ast_model.checkpoints.async_writer import Saved
from ast_model.distributed import World
from ast_model.evaluation.evaluate import Evaluation
from ast_model.evaluation.predictions import AVERAGE, BEST, LAST, predictions_name, save_predictions
from ast_model.training.job import Job
from ast_model.training.regularise import num_kept_patches
from ast_model.training.step_metrics import FLOPS_PER_FORWARD, Figures, StepReport, memory_peak_gib, peak_flops

log = logging.getLogger(__name__)

MAX_KEYS_SHOWN = 24
Metrics = dict[str, float]


class Reporter:
    """Speaks for all ranks on the main one; on the others it only names their samples of skipped steps."""

    def __init__(self, job: Job, world: World):
        self.job, self.world = job, world

    def tell_stretch(self, figures: Figures, epoch: int, num_steps: int, num_skipped: int) -> str:
        """Tell of some steps of an epoch of `num_steps`; return what to show beside the progress."""
        for report in figures.skipped:
            self._name_samples(report, epoch)
        if self.world.is_main:
            step = epoch * num_steps + figures.last_step + 1
            self.job.tracker.log_metrics(self._metrics(figures, num_skipped), step)
        return f"epoch {epoch + 1}, loss {figures.loss:.4f}, {figures.samples_per_s:.1f} samples/s"

    def _metrics(self, figures: Figures, num_skipped: int) -> Metrics:
        metrics = {
            "train/loss": figures.loss,
            "train/learning_rate": figures.learning_rate,
            "train/grad_norm": figures.grad_norm,
            "train/skipped_steps": float(num_skipped),
            "system/samples_per_s": figures.samples_per_s,
            "system/data_wait_share": figures.data_wait_share,
            "system/memory_peak_gib": memory_peak_gib(self.world.device),
            "system/num_ranks": float(self.world.size),
        }
        if (peak := peak_flops(self.world.device)) is not None:
            model = self.job.model
            flops = FLOPS_PER_FORWARD * model.flops_with(num_kept_patches(model.grid, self.job.config.regularise))
            metrics["system/mfu"] = figures.samples_per_s * flops / (peak * self.world.size)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _name_samples(self, report: StepReport, epoch: int) -> None:
        """Name the samples of a skipped step, on each rank its own."""
        are_bad = report.is_bad_B.cpu().numpy()
        rows = report.rows[are_bad] if are_bad.any() else report.rows
        what = "samples whose loss is not finite" if are_bad.any() else "the gradient is not finite; its samples"
        if are_bad.any() or self.world.is_main:
            keys = self.job.snapshot.index["key"].take(rows).to_pylist()
            shown = ", ".join(keys[:MAX_KEYS_SHOWN]) + (" …" if len(keys) > MAX_KEYS_SHOWN else "")
            log.warning("epoch %d, step %d skipped: %s: %s", epoch + 1, report.step + 1, what, shown)

    def tell_epoch(self, history: Sequence[Metrics], evaluation: Evaluation) -> None:
        """Tell of the epoch that the history ends with; keep its scores if it is the best yet, or the last."""
        if not self.world.is_main:
            return
        epoch = int(history[-1]["epoch"])
        log.info("epoch %d: %s", epoch, _line(history[-1]))
        *before, score = (metrics[f"eval/{evaluation.main_metric}"] for metrics in history)
        if score > max(before, default=-math.inf):
            self._save_predictions(BEST, evaluation, epoch)
        if epoch == self.job.config.num_epochs:
            self._save_predictions(LAST, evaluation, epoch)

    def tell_average(self, history: Sequence[Metrics], evaluation: Evaluation, num_averaged: int) -> None:
        """Tell of the averaged weights, with whose figures the history ends, and keep their scores."""
        if not self.world.is_main:
            return
        last = self.job.config.num_epochs
        log.info("average of epochs %d to %d: %s", last - num_averaged + 1, last, _line(history[-1]))
        self._save_predictions(AVERAGE, evaluation, last)

    def _save_predictions(self, name: str, evaluation: Evaluation, epoch: int) -> None:
        """Keep what pictures and comparisons are made of."""
        splits = self.job.config.train_splits, self.job.config.eval_split
        save_predictions(evaluation, self.job.snapshot, splits, predictions_name(self.job.run, name), epoch)

    def tell_checkpoint(self, saved: Saved | None) -> None:
        """Tell the tracker of a checkpoint that has reached the storage, if an evaluation belongs to it."""
        if saved is None:
            return
        metrics, address = saved.description["history"][-1:], self.job.snapshot.store.url(saved.name)
        if saved.name.startswith(self.job.average_folder):
            self.job.tracker.log_checkpoint(AVERAGE, address, metrics[0])
        elif "score" in saved.description:
            self.job.tracker.log_checkpoint(saved.name.split("/")[-1], address, metrics[0])


def eval_metrics(evaluation: Evaluation, prefix: str) -> Metrics:
    """Name an evaluation's figures for the history and the tracker."""
    return {f"{prefix}/{name}": value for name, value in evaluation.figures.items()}


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "epoch")
