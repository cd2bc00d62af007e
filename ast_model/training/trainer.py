"""The loop: step, measure, evaluate, save, resume. At home alone, under torchrun and under Ray Train."""

import dataclasses
import logging
import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ast_model.checkpoints.async_writer import Saver
from ast_model.checkpoints.checkpoint import Checkpoint, Position, State, newest_checkpoint, read_checkpoint
from ast_model.data.loader import Batch
from ast_model.distributed import AnyRankFlag, World
from ast_model.evaluation.evaluate import Evaluation, evaluate
from ast_model.evaluation.predictions import AVERAGE
from ast_model.model import AST
from ast_model.pretrained.load import load_pretrained
from ast_model.training.averages import start_ema, update_average, update_ema
from ast_model.training.checks import check_ranks, check_same_job, check_training, warn_of_normalisation
from ast_model.training.data import TrainingData
from ast_model.training.job import Job, StopSignal
from ast_model.training.optimizer import load_optimizer_state, optimizer_state, set_learning_rate
from ast_model.training.reporter import Metrics, Reporter, eval_metrics
from ast_model.training.schedule import learning_rate_factor
from ast_model.training.step import Stepper
from ast_model.training.step_metrics import Meter, StepReport, Stretch
from pipeline.errors import StoppedError, TrainingError
from pipeline.progress import Progress, show_progress

log = logging.getLogger(__name__)


class Trainer:
    """One rank's part of a training."""

    def __init__(self, job: Job, world: World, watch: StopSignal | None = None):
        """Make ready, from the run's newest checkpoint if there is one."""
        check_ranks(job.config, world.size)
        check_training(job.config, job.model, job.snapshot)
        if world.is_main:
            warn_of_normalisation(job)
        self.job, self.config, self.world, self.watch = job, job.config, world, watch or StopSignal()
        self.data = TrainingData(job)
        self.model = _initial_model(job).to(world.device)
        self.job = dataclasses.replace(job, model=self.model.config)  # weights bring their own epsilons
        self.stepper = Stepper(self.model, self.config, job.normalisation, world)
        self.position = Position()
        self.ema: State = start_ema(self.model) if self.config.ema_decay else {}
        self.average: State = {}
        self.num_averaged = 0
        self.history: list[Metrics] = []
        self.epoch_loss, self.num_taken, self.num_skipped = 0.0, 0, 0
        self.reporter = Reporter(self.job, world)
        self.note = ""
        self._resume()
        self.saver = Saver(job.snapshot.store, job.folder, self.config.checkpoints, self._num_done)

    @property
    def _num_done(self) -> int:
        return self.position.epoch * self.data.num_steps + self.position.step

    def run(self) -> list[Metrics]:
        """Train to the end and return each epoch's metrics.

        Raises StoppedError if it was asked to stop, after a checkpoint was written.
        """
        total = self.config.num_epochs * self.data.num_steps
        bar = show_progress("train", total, "steps", self._num_done) if self.world.is_main else nullcontext(_Silence())
        try:
            with bar as progress:
                while self.position.epoch < self.config.num_epochs:
                    self._train_epoch(progress)
                    self._close_epoch()
            if self.num_averaged > 1:
                self._evaluate_average()
            self.reporter.tell_checkpoint(self.saver.wait())
        finally:
            self.saver.close()
        self.world.barrier()  # nobody leaves before the main rank has written all
        return self.history

    def _train_epoch(self, progress: Progress) -> None:
        """Take the epoch's steps from the current position on."""
        epoch, num_steps = self.position.epoch, self.data.num_steps
        steps = range(self.position.step, num_steps)
        batches = self.data.batches(epoch, steps, self.world)
        meter, vote = Meter(self.world, self.config.global_batch_size), AnyRankFlag(self.world)
        pending: Stretch | None = None
        self.stepper.ranked_model.train()
        for step in steps:
            meter.reports.append(self._step(epoch, step, batches, meter))
            self.position = Position(epoch, step + 1)
            # The stretch before is read only now, while the device has this step to do.
            pending = self._log(pending)
            is_stopping = vote.next(self.watch.is_stopping())
            if is_stopping or (step + 1) % self.config.log_every_steps == 0 or step + 1 == num_steps:
                pending = meter.close()
                if self._is_saving(step) or is_stopping:
                    pending = self._log(pending)
                    self._save()
            progress.advance(1, self.note)
            if is_stopping:
                vote.close()
                self._stop()
        vote.close()
        self._log(pending)

    def _is_saving(self, step: int) -> bool:
        preemption_imminent = self.watch.preemption_imminent()  # asked on every rank, whatever the others say
        return preemption_imminent or (self.saver.is_due(self._num_done) and step + 1 < self.data.num_steps)

    def _step(self, epoch: int, step: int, batches: Iterator[Batch], meter: Meter) -> StepReport:
        def next_batch() -> Batch:
            with meter.waiting():
                return next(batches)

        config, num_done = self.config, epoch * self.data.num_steps + step
        num_steps = config.num_epochs * self.data.num_steps
        factor = learning_rate_factor(num_done, epoch, config.schedule, num_steps)
        set_learning_rate(self.stepper.optimizer, config.learning_rate * factor)
        report = self.stepper.take(epoch, step, next_batch)
        if config.ema_decay:
            update_ema(self.ema, self.model, config.ema_decay, num_done)
        return report

    def _log(self, stretch: Stretch | None) -> None:
        """Log a stretch of steps, on the main rank; raise TrainingError if too many in a row came to nothing."""
        if stretch is None:
            return
        figures = stretch.read()
        if figures.num_taken:
            self.epoch_loss += figures.loss * figures.num_taken
        self.num_taken += figures.num_taken
        self.num_skipped += len(figures.skipped)
        num_steps, epoch = self.data.num_steps, self.position.epoch
        self.note = self.reporter.tell_stretch(figures, epoch, num_steps, self.num_skipped)
        self.reporter.tell_checkpoint(self.saver.finished())
        if figures.num_bad_in_row >= self.config.max_bad_steps:
            raise TrainingError(
                f"{figures.num_bad_in_row} steps in a row up to epoch {epoch + 1}, step {figures.last_step + 1} had a"
                " loss or gradient that is not finite. Each was skipped, so the last checkpoint is sound. Look at the"
                " clips named above; else lower learning_rate, or set precision=fp32"
            )

    def _stop(self) -> None:
        """Leave once the checkpoint is written."""
        self.reporter.tell_checkpoint(self.saver.wait())
        self.world.barrier()
        raise StoppedError(
            f"asked to stop: run {self.job.run} is saved at epoch {self.position.epoch + 1}, step"
            f" {self.position.step}; go on with --resume {self.job.run}"
        )

    def _close_epoch(self) -> None:
        epoch = self.position.epoch + 1
        first = self.config.average_from_epoch
        if first is not None and epoch >= first:
            self.num_averaged += 1
            update_average(self.average, self.model.state_dict(), self.num_averaged)
        evaluation = self._evaluate(self._with_weights(self.ema) if self.ema else self.model)
        loss = self.epoch_loss / self.num_taken if self.num_taken else math.nan
        self.history.append({"epoch": epoch, "train/epoch_loss": loss, **eval_metrics(evaluation, "eval")})
        self.position, self.epoch_loss, self.num_taken = Position(epoch, 0), 0.0, 0
        self._save(evaluation.figures[evaluation.main_metric])
        self.reporter.tell_epoch(self.history, evaluation)

    def _with_weights(self, weights: State) -> AST:
        model = AST(self.job.model).to(self.world.device)
        model.load_state_dict(weights)
        return model

    def _evaluate(self, model: nn.Module) -> Evaluation:
        config = self.config
        with self.world.autocast(config.precision):
            norm, batch_size = self.job.normalisation, config.micro_batch_size
            return evaluate(model, self.data.eval_clips, self.world, norm, batch_size, config.loss)

    def _evaluate_average(self) -> None:
        evaluation = self._evaluate(self._with_weights(self.average))
        self.history.append({"epoch": self.config.num_epochs, **eval_metrics(evaluation, f"eval/{AVERAGE}")})
        if self.world.is_main:
            saved = Checkpoint(self.position, dict(self.average), description=self._description())
            before = self.saver.save(saved, self._num_done, self.job.average_folder)
            self.reporter.tell_checkpoint(before)
        self.reporter.tell_average(self.history, evaluation, self.num_averaged)

    def _description(self) -> dict[str, Any]:
        return {
            **self.job.describe(),
            "history": list(self.history),
            "loop": {
                "epoch_loss": self.epoch_loss,
                "num_taken": self.num_taken,
                "num_skipped": self.num_skipped,
                "scaler": self.stepper.scaler.state_dict(),
            },
        }

    def _save(self, score: float | None = None) -> None:
        """Start to write a checkpoint, on the main rank."""
        if not self.world.is_main:
            return
        description = self._description() | ({} if score is None else {"score": score})
        weights = self.model.state_dict()
        checkpoint = Checkpoint(
            position=self.position,
            model=self.ema or weights,
            raw=weights if self.ema else {},
            optimizer=optimizer_state(self.stepper.optimizer),
            average=self.average,
            num_averaged=self.num_averaged,
            description=description,
        )
        self.reporter.tell_checkpoint(self.saver.save(checkpoint, self._num_done))

    def _resume(self) -> None:
        store, checkpoint = self.job.snapshot.store, None
        if self.world.is_main:
            checkpoint = newest_checkpoint(store, self.job.folder)
        # The main rank chooses: others may see another newest one while files come and go.
        name = self.world.broadcast_object(checkpoint.position.name if checkpoint else "")
        if not name:
            return
        checkpoint = checkpoint or read_checkpoint(store, f"{self.job.folder}/{name}")
        check_same_job(self.job, checkpoint.description)
        self.model.load_state_dict(checkpoint.trained)
        load_optimizer_state(self.stepper.optimizer, checkpoint.optimizer)
        device = self.world.device
        self.position = checkpoint.position
        if self.ema:
            self.ema = {name: value.to(device) for name, value in checkpoint.model.items()}
        self.average = {name: value.to(device) for name, value in checkpoint.average.items()}
        self.num_averaged = checkpoint.num_averaged
        self.history = list(checkpoint.description["history"])
        loop = checkpoint.description["loop"]
        self.epoch_loss, self.num_taken, self.num_skipped = (
            loop[name] for name in ("epoch_loss", "num_taken", "num_skipped")
        )
        if loop["scaler"]:
            self.stepper.scaler.load_state_dict(loop["scaler"])
        epoch, step = self.position.epoch + 1, self.position.step
        log.info("run %s goes on in epoch %d after step %d", self.job.run, epoch, step)


def _initial_model(job: Job) -> AST:
    torch.manual_seed(job.config.seed)
    if job.config.init:
        return load_pretrained(job.config.init, job.model, job.snapshot.labels.names)
    return AST(job.model)


class _Silence:
    def advance(self, amount: int, note: str = "") -> None:
        pass

    def reach(self, done: int, total: int) -> None:
        pass
