"""The loop: step, log, save, evaluate; resumed where it was. Alone, under torchrun and under Ray Train."""

import dataclasses
import logging
import math
from contextlib import AbstractContextManager, closing, nullcontext

import torch

from ast_model.checkpoints.async_writer import Saver
from ast_model.checkpoints.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, remove_incomplete
from ast_model.distributed import AnyRankFlag, World
from ast_model.evaluation.evaluate import Evaluation, evaluate
from ast_model.evaluation.predictions import AVERAGE
from ast_model.flops import training_flops
from ast_model.model import AST
from ast_model.pretrained.load import load_pretrained
from ast_model.training.checks import (
    check_average,
    check_ranks,
    check_same_job,
    check_training,
    warn_of_normalisation,
)
from ast_model.training.data import TrainingData
from ast_model.training.device import describe_device, set_matmul_precision
from ast_model.training.job import Job, StopSignal
from ast_model.training.memory import settle_micro_batch, step_bytes
from ast_model.training.optimizer import set_learning_rate
from ast_model.training.reporter import Reporter, eval_metrics
from ast_model.training.schedule import learning_rate_factor
from ast_model.training.state import TrainingState
from ast_model.training.step import Stepper, advice_on_memory
from ast_model.training.step_metrics import Metrics, PendingMetrics, StepWindow
from pipeline.errors import StoppedError, TrainingError
from pipeline.progress import Progress, show_progress

log = logging.getLogger(__name__)


class Trainer:
    """One rank's part of a training."""

    def __init__(self, job: Job, world: World, stop_signal: StopSignal | None = None):
        """Get ready, from the run's newest checkpoint if there is one."""
        check_ranks(job.config, world.size)
        check_training(job.config, job.model, job.snapshot)
        if world.is_main:
            warn_of_normalisation(job)
        self.world, self.stop_signal = world, stop_signal or StopSignal()
        set_matmul_precision(job.config)
        model = initial_model(job)
        self.state = TrainingState(model, job.config, world)
        self.config = settle_micro_batch(self.state, job.config, job.normalisation, world)
        # Weights bring their own epsilons.
        self.job = job = dataclasses.replace(job, model=model.config, config=self.config)
        self.data = TrainingData(job)
        self._resume()
        self.stepper = Stepper(self.state, job.config, job.normalisation, world)
        self.saver = Saver(job.store, job.folder, job.config.checkpoints, self.num_steps_done)
        self.reporter = Reporter(self.job, world)
        computed_gib = step_bytes(job.model, job.config, job.config.clips_at_a_time, world) / 2**30
        facts = {"device.memory_computed_gib": f"{computed_gib:.2f}"}
        self.reporter.log_device(describe_device(job.config, self.stepper.attention, world) | facts)
        self.note = ""

    @property
    def num_steps_done(self) -> int:
        """Steps since the start of the run, skipped ones too."""
        return self.state.loop.epoch * self.data.num_steps + self.state.loop.step

    def run(self) -> list[Metrics]:
        """Train to the end and return each epoch's metrics.

        Raises StoppedError if it was asked to stop, after a checkpoint was written.
        """
        config, state, num_steps = self.config, self.state, self.data.num_steps
        loop, total = state.loop, config.num_epochs * num_steps
        with closing(self.saver), self._show_progress(total) as progress:
            if len(loop.history) < loop.epoch:  # the process before was lost between an epoch and its evaluation
                self._evaluate_epoch()
            while loop.epoch < config.num_epochs:
                window = self._new_window()
                # Draws follow from the epoch alone: those of the steps that are done are passed over unread.
                batches = window.waiting(self.data.batches(loop.epoch, range(loop.step, num_steps), self.world))
                pending: PendingMetrics | None = None
                stop_vote = AnyRankFlag(self.world)
                self.state.model.train()
                while loop.step < num_steps:
                    factor = learning_rate_factor(self.num_steps_done, loop.epoch, config.schedule, total)
                    set_learning_rate(state.optimizer, config.learning_rate * factor)
                    window.add(self.stepper.train_step(loop.epoch, loop.step, batches))
                    loop.step += 1
                    # A stop is voted on: ranks hear of it at different times, but must leave at the same step, or
                    # those that stay would wait for the others' gradients for ever.
                    must_stop = stop_vote.next(self.stop_signal.is_stopping())
                    ends_window = must_stop or loop.step % config.log_every_steps == 0 or loop.step == num_steps
                    # The metrics of the window before are read only now: the device has this step to do meanwhile.
                    self._log_steps(pending)
                    pending = window.close() if ends_window else None
                    if ends_window and (self._is_save_due() or must_stop):
                        # The counts that are saved have to cover the steps that the saved weights took.
                        self._log_steps(pending)
                        pending = None
                        self._save()
                    progress.advance(1, self.note)
                    if must_stop:
                        stop_vote.close()
                        self._stop()
                stop_vote.close()
                self._log_steps(pending)
                loop.epoch, loop.step = loop.epoch + 1, 0
                state.update_average()
                # Saved before it is evaluated: should the evaluation fail, the epoch's steps are not lost.
                self._save()
                self._evaluate_epoch()
            if loop.num_averaged > 1:
                self._evaluate_average()
            self._finish_saving()
        self.world.barrier()  # no rank leaves before the main one has written all
        return loop.history

    def _new_window(self) -> StepWindow:
        model, config = self.job.model, self.config
        num_flops = training_flops(model, config.regularise.num_kept_patches(model.grid))
        return StepWindow(self.world, config.global_batch_size, num_flops)

    def _show_progress(self, total: int) -> AbstractContextManager[Progress]:
        if self.world.is_main:
            return show_progress("train", total, "steps", self.num_steps_done)
        return nullcontext(_NoProgress())

    def _is_save_due(self) -> bool:
        # Asked on every rank, whatever the others say. The end of an epoch saves anyway.
        preemption_imminent = self.stop_signal.preemption_imminent()
        return preemption_imminent or (
            self.saver.is_due(self.num_steps_done) and self.state.loop.step < self.data.num_steps
        )

    def _log_steps(self, pending: PendingMetrics | None) -> None:
        """Log a window of steps, and checkpoints written meanwhile; raise TrainingError if too many were skipped."""
        if pending is None:
            return
        loop = self.state.loop
        metrics, skipped, num_bad_in_row = pending.read()
        num_taken, last = len(pending.results) - len(skipped), pending.results[-1].step + 1
        loop.loss_sum += metrics["train/loss"] * num_taken if num_taken else 0.0
        loop.num_steps_taken += num_taken
        loop.num_steps_skipped += len(skipped)
        metrics["train/skipped_steps"] = float(loop.num_steps_skipped)
        if skipped:
            self._check_attention(skipped[-1].step)
        if self.stepper.attention.num_changes:
            metrics["train/attention_changes"] = float(self.stepper.attention.num_changes)
        for result in skipped:
            self.reporter.log_skipped(result, loop.epoch)
        self.reporter.log_steps(metrics, loop.epoch * self.data.num_steps + last)
        self.reporter.log_checkpoints(self.saver.completed())
        rate = metrics["system/samples_per_s"]
        self.note = f"epoch {loop.epoch + 1}, loss {metrics['train/loss']:.4f}, {rate:.1f} samples/s"
        if num_bad_in_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"{num_bad_in_row} steps in a row up to epoch {loop.epoch + 1}, step {last} had a loss or gradient that"
                " is not finite. Each was skipped, so the last checkpoint is good. Look at the clips named above; else"
                " lower --train.learning-rate, or set --train.precision fp32"
            )

    def _check_attention(self, step: int) -> None:
        """Change over to other attention kernels if they give a skipped step's gradient, and those in use don't."""
        attention, epoch = self.stepper.attention, self.state.loop.epoch
        if attention.next_best is None:
            return
        # Every rank comes here for the same step, and finds the same: gradients are averaged over the ranks.
        used, other = (
            self.stepper.gradient_is_finite(epoch, step, self.data.read_step(epoch, step, self.world), kernels)
            for kernels in (attention, attention.try_next_best())
        )
        if other and not used:
            if self.world.is_main:
                log.warning(
                    "attention by %s gives a gradient that is not finite in epoch %d, step %d, by %s it is finite:"
                    " changing over to that; to start with it, set --train.attention %s",
                    *(attention.name, epoch + 1, step + 1, attention.next_best, attention.next_best),
                )
            attention.change()
            self.reporter.log_device(describe_device(self.config, attention, self.world))

    def _save(self) -> None:
        """Start to write a checkpoint, on the main rank."""
        if self.world.is_main:
            self.saver.submit(self.state.checkpoint(self.job.describe()), self.num_steps_done)

    def _stop(self) -> None:
        """Leave once the checkpoint is written."""
        self._finish_saving()
        self.world.barrier()
        loop, run = self.state.loop, self.job.run
        raise StoppedError(
            f"asked to stop: run {run} is saved at epoch {loop.epoch + 1}, step {loop.step}; go on with --resume {run}"
        )

    def _finish_saving(self) -> None:
        self.saver.wait()
        self.reporter.log_checkpoints(self.saver.completed())

    def _evaluate_epoch(self) -> None:
        """Evaluate the epoch that was just finished, and bring what that gave to its checkpoint."""
        loop = self.state.loop
        evaluation = self._evaluate(self.state.model)
        loss = loop.loss_sum / loop.num_steps_taken if loop.num_steps_taken else math.nan
        loop.history.append({"epoch": loop.epoch, "train/epoch_loss": loss, **eval_metrics(evaluation, "eval")})
        loop.loss_sum, loop.num_steps_taken = 0.0, 0
        if self.world.is_main:
            self.saver.submit_evaluation(loop, evaluation.metrics_by_name[evaluation.main_metric])
        self.reporter.log_epoch(loop.history, evaluation)

    def _evaluate(self, model: AST) -> Evaluation:
        config = self.config
        with advice_on_memory(config, self.world):
            norm, batch_size = self.job.normalisation, config.clips_at_a_time
            return evaluate(model, self.data.eval_clips, self.world, norm, batch_size, config.loss)

    def _evaluate_average(self) -> None:
        """Evaluate the mean of the last epochs' weights, and save it as a model of its own."""
        loop, average = self.state.loop, self.state.average
        evaluation = self._evaluate(self.state.model_with(average))
        loop.history.append({"epoch": loop.epoch, **eval_metrics(evaluation, f"eval/{AVERAGE}")})
        if self.world.is_main:
            checkpoint = Checkpoint(loop, dict(average), description=self.job.describe())
            self.saver.submit(checkpoint, self.num_steps_done, self.job.average_folder)
        self.reporter.log_average(loop.history, evaluation, loop.num_averaged)

    def _resume(self) -> None:
        """Go back to the run's newest sound checkpoint, if there is one."""
        job, checkpoint = self.job, None
        if self.world.is_main:
            checkpoint = newest_checkpoint(job.store, job.folder)
            remove_incomplete(job.store, job.folder)
        # The main rank chooses: others may see another newest one while files come and go.
        name = self.world.broadcast_object(checkpoint.loop.name if checkpoint else "")
        if not name:
            return
        checkpoint = checkpoint or read_checkpoint(job.store, f"{job.folder}/{name}")
        check_same_job(job.run, job.settings, checkpoint.description)
        check_average(job.config, checkpoint.loop)
        self.state.restore(checkpoint)
        loop = self.state.loop
        log.info("run %s goes on in epoch %d after step %d", job.run, loop.epoch + 1, loop.step)


def initial_model(job: Job) -> AST:
    """Return the model that a training begins with: of given weights, or of random ones by the seed."""
    torch.manual_seed(job.config.seed)
    if job.config.init:
        return load_pretrained(job.config.init, job.model, job.snapshot.labels.names)
    return AST(job.model)


class _NoProgress:
    def advance(self, amount: int, note: str = "") -> None:
        pass

    def reach(self, done: int, total: int) -> None:
        pass
