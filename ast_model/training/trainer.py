"""The training loop: step, log, save, evaluate. Runs in a single process, under torchrun or under Ray Train."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch

from ast_model.checkpoints.async_writer import CheckpointWriter
from ast_model.checkpoints.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, remove_incomplete
from ast_model.distributed import AnyRankFlag, World
from ast_model.evaluation.evaluate import Evaluation, evaluate
from ast_model.evaluation.predictions import AVERAGE
from ast_model.model import AST
from ast_model.pretrained.load import load_pretrained
from ast_model.training.checks import check_average, check_ranks, check_same_job
from ast_model.training.compile_cache import open_compile_cache
from ast_model.training.data import TeacherScores, TrainingData
from ast_model.training.device import describe_device, set_matmul_precision
from ast_model.training.estimate import EndEstimate
from ast_model.training.job import Launcher, TrainingJob
from ast_model.training.memory import resolve_micro_batch, step_bytes
from ast_model.training.optimizer import set_learning_rate
from ast_model.training.plan import TrainingPlan
from ast_model.training.reporter import Reporter, eval_metrics, finite_metrics
from ast_model.training.schedule import learning_rate_factor
from ast_model.training.stalled_loss import StalledLoss
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper, explain_out_of_memory
from ast_model.training.step_metrics import Metrics, StepMetrics, WindowMetrics
from pipeline.errors import StoppedError, TrainingError
from pipeline.progress import Progress, show_progress

log = logging.getLogger(__name__)


class Trainer:
    """One rank of a training run."""

    def __init__(
        self,
        job: TrainingJob,
        world: World,
        launcher: Launcher | None = None,
        teachers: TeacherScores | None = None,
    ):
        """Prepare the training, and restore the run's newest checkpoint if there is one.

        teachers: scores of the training clips by the job's `teachers`. The caller must run `checks.check_training`
        first, once for all ranks.
        """
        check_ranks(job.config, world.size)
        self.world, self.launcher = world, launcher or Launcher()
        set_matmul_precision(job.config)
        self.state = TrainingState(initial_model(job), job.config, world)
        self.config = resolve_micro_batch(self.state, job.config, job.normalisation, world)
        # Loaded weights may have other LayerNorm epsilons, so adopt the settings of the loaded model.
        self.job = job = dataclasses.replace(job, model=self.state.model.config, config=self.config)
        self.plan = TrainingPlan(job.snapshot, job.config)
        self.stalled_loss = StalledLoss(self.plan, job.model.num_classes)
        self.data = TrainingData(self.plan, job.model.num_frames, teachers)
        self._resume()
        compile_cache = open_compile_cache(job, world)
        self.stepper = Stepper(self.state, job.config, job.normalisation, world, compile_cache=compile_cache)
        self.saver = CheckpointWriter(job.store, job.folder, job.config.checkpoints, self.num_steps_done)
        self.reporter = Reporter(job, world, self.launcher)
        self.reporter.log_history(self.state.loop.history)
        computed_gib = step_bytes(job.model, job.config, job.config.clips_per_micro_batch, world) / 2**30
        facts = {"device.memory_computed_gib": f"{computed_gib:.2f}"}
        self.reporter.log_device(describe_device(job.config, self.stepper.attention, world) | facts)
        self.note = ""

    @property
    def num_steps_done(self) -> int:
        """Number of steps since the start of the run, including skipped steps."""
        return self.state.loop.epoch * self.plan.num_steps + self.state.loop.step

    def run(self) -> list[Metrics]:
        """Train to the end and return each epoch's metrics.

        After a stop request, raises StoppedError as soon as a checkpoint is written.
        """
        state = self.state
        loop, estimate = state.loop, EndEstimate(self.plan, self.job.model, self.world)
        with closing(self.saver), self._show_progress() as progress:
            if len(loop.history) < loop.epoch:  # a process died between checkpoint and evaluation
                self._evaluate_epoch()
            while loop.epoch < self.config.num_epochs:
                self._train_epoch(progress, estimate)
                loop.epoch, loop.step = loop.epoch + 1, 0
                state.update_average()
                # Save before evaluating, so that a failed evaluation does not lose the epoch.
                self._save()
                self._evaluate_epoch()
            if loop.num_averaged > 1:
                self._evaluate_average()
            self._finish_saving()
        self.world.barrier()  # ranks may exit only after the main rank has written everything
        return loop.history

    def _train_epoch(self, progress: Progress, estimate: EndEstimate) -> None:
        """Take the remaining steps of the current epoch."""
        loop, num_steps = self.state.loop, self.plan.num_steps
        metrics = StepMetrics(self.plan, self.job.model, self.world, self._log_window)
        # Draws depend only on the epoch, so a resumed epoch continues at its next step without reading earlier batches.
        batches = metrics.timing(self.data.batches(loop.epoch, range(loop.step, num_steps), self.world))
        stop_vote = AnyRankFlag(self.world)
        self.state.model.train()
        while loop.step < num_steps:
            self._set_learning_rate()
            metrics.add(self.stepper.train_step(loop.epoch, loop.step, batches))
            loop.step += 1
            # Ranks vote on stopping. Stop requests reach them at different times, but all ranks must leave at the same
            # step. Otherwise the remaining ranks would wait forever for gradients.
            must_stop = stop_vote.next(self.launcher.is_stopping())
            if must_stop or metrics.is_due(loop.step):
                metrics.close_window()
                if must_stop or self._is_save_due():
                    metrics.flush()  # the saved counts must cover the saved steps
                    self._save()
            estimate.count_step(loop)
            progress.advance(1, self.note)
            if must_stop:
                stop_vote.close()
                self._stop()
        stop_vote.close()
        metrics.flush()

    def _set_learning_rate(self) -> None:
        config = self.config
        factor = learning_rate_factor(
            self.num_steps_done, self.state.loop.epoch, config.schedule, self.plan.total_steps
        )
        set_learning_rate(self.state.optimizer, config.learning_rate * factor)

    @contextmanager
    def _show_progress(self) -> Iterator[Progress]:
        if not self.world.is_main:
            yield _NoProgress()
            return
        with show_progress("train", self.plan.total_steps, "steps", self.num_steps_done) as progress:
            yield progress

    def _is_save_due(self) -> bool:
        # Poll preemption on every rank, even if a checkpoint is due. The end of an epoch saves anyway.
        preemption_imminent = self.launcher.preemption_imminent()
        return preemption_imminent or (
            self.saver.is_due(self.num_steps_done) and self.state.loop.step < self.plan.num_steps
        )

    def _log_window(self, window: WindowMetrics) -> None:
        """Log a window of steps and new checkpoints. Raises TrainingError after too many bad steps in a row."""
        loop, metrics, attention = self.state.loop, window.metrics, self.stepper.attention
        loop.loss_sum += metrics["train/loss"] * window.num_taken if window.num_taken else 0.0
        loop.num_steps_taken += window.num_taken
        loop.num_steps_skipped += len(window.skipped)
        metrics["train/skipped_steps"] = float(loop.num_steps_skipped)
        if window.skipped:
            self._check_attention(window.skipped[-1].step)
        if attention.num_changes:
            metrics["train/attention_changes"] = float(attention.num_changes)
        for result in window.skipped:
            self.reporter.log_skipped(result, loop.epoch)
        num_steps = window.last_step + 1
        num_steps_done = loop.epoch * self.plan.num_steps + num_steps
        self.reporter.log_steps(metrics, num_steps_done)
        if self.world.is_main:
            self.stalled_loss.add(metrics["train/loss"], window.num_taken, num_steps_done)
        self.reporter.log_checkpoints(self.saver.completed())
        rate = metrics["system/samples_per_s"]
        self.note = f"epoch {loop.epoch + 1}, loss {metrics['train/loss']:.4f}, {rate:.1f} samples/s"
        if window.num_bad_in_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"{window.num_bad_in_row} steps in a row up to epoch {loop.epoch + 1}, step {num_steps} had a"
                " non-finite loss or gradient. Each was skipped, so the last checkpoint is good. Check the clips named"
                " above, lower --train.learning-rate, or set --train.precision fp32"
            )

    def _check_attention(self, step: int) -> None:
        """After a skipped step, switch to the next attention kernels if only these give a finite gradient."""
        attention, epoch = self.stepper.attention, self.state.loop.epoch
        if attention.next_best is None:
            return
        # All ranks check the same step and get the same answer, since gradients are averaged over the ranks.
        is_finite, would_be_finite = (
            self.stepper.gradient_is_finite(epoch, step, self.data.read_step(epoch, step, self.world), kernels)
            for kernels in (attention, attention.after_change())
        )
        if would_be_finite and not is_finite:
            if self.world.is_main:
                log.warning(
                    "attention by %s gives a non-finite gradient in epoch %d, step %d, but attention by %s a finite"
                    " one. Switching to it. To start with it, set --train.attention %s",
                    *(attention.name, epoch + 1, step + 1, attention.next_best, attention.next_best),
                )
            attention.change()
            self.reporter.log_device(describe_device(self.config, attention, self.world))

    def _save(self) -> None:
        """Start writing a checkpoint, on the main rank."""
        if self.world.is_main:
            self.saver.submit(self.state.checkpoint(self.job.describe()), self.num_steps_done)

    def _stop(self) -> None:
        """Wait for the checkpoint and raise StoppedError."""
        self._finish_saving()
        self.world.barrier()
        loop, run = self.state.loop, self.job.run
        raise StoppedError(
            f"asked to stop: run {run} is saved at epoch {loop.epoch + 1}, step {loop.step}; resume with --resume {run}"
        )

    def _finish_saving(self) -> None:
        self.saver.wait()
        self.reporter.log_checkpoints(self.saver.completed())

    def _evaluate_epoch(self) -> None:
        """Evaluate the finished epoch and add the results to its checkpoint."""
        loop = self.state.loop
        evaluation = self._evaluate(self.state.model)
        # If all steps were skipped, the epoch has no loss.
        loss = {"train/epoch_loss": loop.loss_sum / loop.num_steps_taken} if loop.num_steps_taken else {}
        loop.history.append({"epoch": loop.epoch, **loss, **eval_metrics(evaluation, "eval")})
        loop.loss_sum, loop.num_steps_taken = 0.0, 0
        if self.world.is_main:
            self.saver.submit_evaluation(loop, evaluation.metrics_by_name[evaluation.main_metric])
        self.reporter.log_epoch(loop.history, evaluation)

    def _evaluate(self, model: AST) -> Evaluation:
        config = self.config
        with explain_out_of_memory(config, self.world):
            norm, batch_size = self.job.normalisation, config.clips_per_micro_batch
            return evaluate(model, self.data.eval_clips, self.world, norm, batch_size, config.loss)

    def _evaluate_average(self) -> None:
        """Evaluate the mean of the last epochs' weights, and save it as a separate model."""
        loop, average = self.state.loop, self.state.average
        evaluation = self._evaluate(self.state.model_with(average))
        loop.history.append({"epoch": loop.epoch, **eval_metrics(evaluation, f"eval/{AVERAGE}")})
        if self.world.is_main:
            checkpoint = Checkpoint(loop, dict(average), description=self.job.describe())
            self.saver.submit(checkpoint, self.num_steps_done, self.job.average_folder)
        self.reporter.log_average(loop.history, evaluation, loop.num_averaged)

    def _resume(self) -> None:
        """Restore the run's newest intact checkpoint, if it has one."""
        job, checkpoint = self.job, None
        if self.world.is_main:
            checkpoint = newest_checkpoint(job.store, job.folder)
            remove_incomplete(job.store, job.folder)
        # The main rank chooses for all ranks, because they may list different files while checkpoints are written and
        # removed.
        name = self.world.broadcast_object(checkpoint.loop.name if checkpoint else "")
        if not name:
            return
        checkpoint = checkpoint or read_checkpoint(job.store, f"{job.folder}/{name}")
        check_same_job(job.run, job.settings, checkpoint.description)
        check_average(job.config, checkpoint.loop)
        # Checkpoints of earlier versions may contain infinite metrics, which JSON cannot represent.
        checkpoint.loop.history = [finite_metrics(metrics) for metrics in checkpoint.loop.history]
        self.state.restore(checkpoint)
        loop = self.state.loop
        log.info("resuming run %s in epoch %d after step %d", job.run, loop.epoch + 1, loop.step)


def initial_model(job: TrainingJob) -> AST:
    """Return the initial model, loaded from `init` or with random weights from the seed."""
    torch.manual_seed(job.config.seed)
    if job.config.init:
        return load_pretrained(job.config.init, job.model, job.snapshot.labels.names)
    return AST(job.model)


class _NoProgress:
    def advance(self, amount: int, note: str = "") -> None:
        pass

    def reach(self, done: int, total: int) -> None:
        pass
