"""The loop: step, measure, evaluate, save, resume. At home alone, under torchrun and under Ray Train."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as nnf
from scipy import sparse
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ast_model.augment import augment
from ast_model.checkpoint import (
    Checkpoint,
    Position,
    State,
    load_optimizer_state,
    newest_checkpoint,
    optimizer_state,
    prune_checkpoints,
    save_checkpoint,
)
from ast_model.config import TrainConfig
from ast_model.draws import Draws, group_by_shard, num_steps_of, plan_epoch, share_of_rank
from ast_model.evaluate import Evaluation, Normalisation, evaluate
from ast_model.loader import Batch, Collator, open_reader
from ast_model.model import AST, ASTConfig
from ast_model.schedule import learning_rate_factor
from ast_model.world import World
from pipeline.errors import MismatchError, NoClipsError, TrainingError
from pipeline.labels import Labels
from pipeline.progress import Progress, show_progress
from pipeline.snapshot import Snapshot, check_fingerprint
from pipeline.verify import check_sizes
from pipeline.weights import class_balanced_weights

log = logging.getLogger(__name__)

ADAM_BETAS = (0.95, 0.999)
NUM_CHECKPOINTS_KEPT = 2
FAR_FROM_DATA = 0.25
"""In standard deviations: a recipe whose normalisation is further from the data's is warned about."""

Metrics = dict[str, float]


class Tracker(Protocol):
    """Who is told how a training goes. Only the main rank tells."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def log_classes(self, name: str, evaluation: Evaluation, labels: Labels, num_train_clips: np.ndarray) -> None: ...

    def log_checkpoint(self, name: str, address: str, metrics: Mapping[str, float]) -> None: ...


@dataclass(frozen=True)
class Job:
    """What to train, on what, and where the result goes."""

    config: TrainConfig
    model: ASTConfig
    snapshot: Snapshot
    run: str
    """Unique name; the checkpoints lie in `runs/{run}/checkpoints` of the snapshot's store."""
    tracker: Tracker

    @property
    def folder(self) -> str:
        return f"runs/{self.run}/checkpoints"

    @property
    def normalisation(self) -> Normalisation:
        if self.config.mean is None or self.config.std is None:
            return Normalisation(self.snapshot.mean, self.snapshot.std)
        return Normalisation(self.config.mean, self.config.std)


def check_job(job: Job) -> None:
    """Raise, before anything costly, if the data can't be learnt from as the config says."""
    config, snapshot = job.config, job.snapshot
    check_fingerprint(snapshot)
    if len(snapshot.labels) != job.model.num_classes:
        raise MismatchError(
            f"expected a model of {len(snapshot.labels)} classes, as snapshot {snapshot.snapshot_id} has, found one of"
            f" {job.model.num_classes}; set model.num_classes"
        )
    snapshot.rows_of((config.eval_split,))
    snapshot.rows_of(config.train_splits)
    counts = snapshot.class_counts(config.train_splits)
    empty = [name for name, count in zip(snapshot.labels.names, counts, strict=True) if count == 0]
    if empty and not config.allow_empty_classes:
        raise NoClipsError(
            f"{len(empty)} of {len(counts)} classes have no training clip: {', '.join(empty[:10])}. Remove them from"
            " class_labels_indices.csv, fetch clips for them, or set train.allow_empty_classes"
        )
    if config.features == "waveform" and not snapshot.manifest["settings"]["keep_audio"]:
        raise MismatchError(
            f"features=waveform needs audio, but snapshot {snapshot.snapshot_id} was made without; preprocess with"
            " keep_audio, or train with features=fbank"
        )
    check_sizes(snapshot)
    norm = job.normalisation
    if abs(norm.mean - snapshot.mean) > FAR_FROM_DATA * snapshot.std or not 0.75 < norm.std / snapshot.std < 1.33:
        log.warning(
            "the recipe normalises with mean %.2f and std %.2f, but the data's are %.2f and %.2f; results will differ"
            " from the recipe's. Leave train.mean and train.std unset to use the data's",
            *(norm.mean, norm.std, snapshot.mean, snapshot.std),
        )


class Trainer:
    """One rank's part of a training."""

    def __init__(self, job: Job, world: World):
        check_job(job)
        self.job, self.config, self.world = job, job.config, world
        self.model = _initial_model(job).to(world.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=self.config.learning_rate,
            betas=ADAM_BETAS,
            weight_decay=self.config.weight_decay,
            fused=world.device.type == "cuda",
        )
        self.position = Position()
        self.average: State = {}
        self.num_averaged = 0
        self.history: list[Metrics] = []
        self._open_data()
        self._resume()
        self.ranked_model = world.wrap(self.model)

    def _open_data(self) -> None:
        snapshot, config = self.job.snapshot, self.config
        train_rows, eval_rows = snapshot.rows_of(config.train_splits), snapshot.rows_of((config.eval_split,))
        targets = snapshot.targets(train_rows)
        self.weights = class_balanced_weights(targets, config.weight_count_offset)
        self.num_draws = config.draws_per_epoch or len(train_rows)
        self.num_steps = num_steps_of(self.num_draws, config.global_batch_size)
        self.clips = self._collator(train_rows, targets)
        self.eval_clips = self._collator(eval_rows, snapshot.targets(eval_rows))

    def _collator(self, rows: np.ndarray, targets: sparse.csr_array) -> Collator:
        reader = open_reader(self.job.snapshot, self.config.cache)
        return Collator(reader, rows, targets, self.job.model.num_frames, self.config.features)

    def run(self, on_epoch: Callable[[Metrics], None] = lambda metrics: None) -> list[Metrics]:
        """Train to the end, from the newest checkpoint of the run if there is one; return each epoch's metrics.

        `on_epoch` is called on every rank after each epoch, with the same metrics.
        """
        total = self.config.num_epochs * self.num_steps
        done = self.position.epoch * self.num_steps + self.position.step
        bar = show_progress("train", total, "steps", done) if self.world.is_main else nullcontext(_Silence())
        with bar as progress:
            while self.position.epoch < self.config.num_epochs:
                train_loss = self._train_epoch(progress)
                self._close_epoch(train_loss)
                on_epoch(self.history[-1])
        if self.num_averaged > 1:
            self._evaluate_average()
            on_epoch(self.history[-1])
        return self.history

    def _train_epoch(self, progress: Progress) -> float:
        """Take the epoch's steps from the current position on; return the mean loss of the last stretch."""
        epoch = self.position.epoch
        steps = range(self.position.step, self.num_steps)
        batches = self.clips.stream(self._micro_draws(epoch, steps), self.config.num_reader_threads)
        meter = _Meter()
        loss = math.nan
        self.ranked_model.train()
        for step in steps:
            meter.add(self._step(epoch, step, batches, meter))
            note = ""
            if (step + 1) % self.config.log_every_steps == 0 or step + 1 == self.num_steps:
                loss = self._log_steps(epoch, step, meter)
                note = f"epoch {epoch + 1}, loss {loss:.4f}"
            progress.advance(1, note)
        return loss

    def _micro_draws(self, epoch: int, steps: range) -> Iterator[Draws]:
        """Yield this rank's draws, a micro-batch at a time."""
        config = self.config
        seed = (self.job.snapshot.snapshot_id, config.seed, epoch)
        draws = plan_epoch(self.weights, self.num_draws, config.sampler, config.augment, seed)
        draws = draws[: self.num_steps * config.global_batch_size]
        if config.group_draws:
            shards = self.clips.reader.shards_of(self.clips.rows)
            draws = group_by_shard(draws, shards, config.group_draws, seed)
        self.clips.expect(draws[steps.start * config.global_batch_size :], config.group_draws > 0)
        for step in steps:
            share = self._share(step)
            for start in range(share.start, share.stop, config.micro_batch_size):
                yield draws[start : min(start + config.micro_batch_size, share.stop)]

    def _share(self, step: int) -> slice:
        return share_of_rank(step, self.config.global_batch_size, self.world.rank, self.world.size)

    def _step(self, epoch: int, step: int, batches: Iterator[Batch], meter: "_Meter") -> Tensor:
        """Take one optimiser step; return this rank's part of the global batch's loss."""
        config, share = self.config, self._share(step)
        num_micro = math.ceil((share.stop - share.start) / config.micro_batch_size)
        factor = learning_rate_factor(epoch * self.num_steps + step, epoch, config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self.world.device)
        for micro in range(num_micro):
            with meter.waiting():
                batch = next(batches).to(self.world.device)
            with _sync_gradients(self.ranked_model, micro + 1 == num_micro):
                loss += self._backward(batch)
        meter.grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), math.inf)
        self.optimizer.step()
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        """Add a micro-batch's gradients; return its share of the loss, the mean over the global batch."""
        config, device = self.config, self.world.device
        norm = self.job.normalisation
        fbank_BTM = augment(batch, config.augment, norm.mean, norm.std)
        uses_bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16):
            logits_BC = self.ranked_model(fbank_BTM)
        loss = loss_sum(logits_BC.float(), batch.targets_BC, config.loss) / config.global_batch_size
        (loss * self.world.size).backward()  # the ranks' gradients are averaged, not summed
        return loss.detach()

    def _log_steps(self, epoch: int, step: int, meter: "_Meter") -> float:
        """Log the stretch since the last log and start a new one; return its mean loss over all ranks."""
        loss = float(self.world.sum(meter.loss)) / meter.num_steps
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at epoch {epoch + 1}, step {step + 1}; the last checkpoint is sound. Lower"
                " learning_rate, or set precision=fp32"
            )
        if self.world.is_main:
            metrics = {
                "train/loss": loss,
                "train/learning_rate": self.optimizer.param_groups[0]["lr"],
                "train/grad_norm": float(meter.grad_norm),
                "system/samples_per_s": meter.num_steps * self.config.global_batch_size / meter.elapsed_s,
                "system/data_wait_share": meter.waited_s / meter.elapsed_s,
            }
            self.job.tracker.log_metrics(metrics, epoch * self.num_steps + step + 1)
        meter.restart()
        return loss

    def _close_epoch(self, train_loss: float) -> None:
        epoch = self.position.epoch + 1
        first = self.config.average_from_epoch
        if first is not None and epoch >= first:
            self.num_averaged += 1
            update_average(self.average, self.model.state_dict(), self.num_averaged)
        evaluation = self._evaluate(self.model)
        self.history.append({"epoch": epoch, "train/epoch_loss": train_loss, **eval_metrics(evaluation, "eval")})
        self.position = Position(epoch, 0)
        self._save()
        if self.world.is_main:
            log.info("epoch %d: %s", epoch, _line(self.history[-1]))
            if epoch == self.config.num_epochs:
                self._log_classes("last", evaluation)

    def _evaluate(self, model: nn.Module) -> Evaluation:
        batch_size = self.config.micro_batch_size
        return evaluate(model, self.eval_clips, self.world, self.job.normalisation, batch_size)

    def _evaluate_average(self) -> None:
        averaged = AST(self.job.model).to(self.world.device)
        averaged.load_state_dict(self.average)
        evaluation = self._evaluate(averaged)
        self.history.append({"epoch": self.config.num_epochs, **eval_metrics(evaluation, "average")})
        if self.world.is_main:
            store = self.job.snapshot.store
            saved = Checkpoint(self.position, dict(self.average), description=self._description())
            address = save_checkpoint(store, f"runs/{self.job.run}/average", saved)
            self.job.tracker.log_checkpoint("average", store.url(address), self.history[-1])
            log.info("average of epochs %d to %d: %s", *self._averaged_epochs, _line(self.history[-1]))
            self._log_classes("average", evaluation)

    @property
    def _averaged_epochs(self) -> tuple[int, int]:
        return self.config.num_epochs - self.num_averaged + 1, self.config.num_epochs

    def _log_classes(self, name: str, evaluation: Evaluation) -> None:
        snapshot = self.job.snapshot
        counts = snapshot.class_counts(self.config.train_splits)
        self.job.tracker.log_classes(name, evaluation, snapshot.labels, counts)

    def _description(self) -> dict[str, Any]:
        labels, norm = self.job.snapshot.labels, self.job.normalisation
        return {
            "model": asdict(self.job.model),
            "train": asdict(self.config),
            "labels": {"mids": labels.mids, "names": labels.names},
            "mean": norm.mean,
            "std": norm.std,
            "snapshot": self.job.snapshot.snapshot_id,
            "run": self.job.run,
            "history": self.history,
        }

    def _save(self) -> None:
        if self.world.is_main:
            store, names = self.job.snapshot.store, [name for name, _ in self.model.named_parameters()]
            checkpoint = Checkpoint(
                position=self.position,
                model=self.model.state_dict(),
                optimizer=optimizer_state(self.optimizer, names),
                average=self.average,
                num_averaged=self.num_averaged,
                description=self._description(),
            )
            address = save_checkpoint(store, self.job.folder, checkpoint)
            prune_checkpoints(store, self.job.folder, NUM_CHECKPOINTS_KEPT)
            self.job.tracker.log_checkpoint(self.position.name, store.url(address), self.history[-1])
        self.world.barrier()

    def _resume(self) -> None:
        checkpoint = newest_checkpoint(self.job.snapshot.store, self.job.folder)
        if checkpoint is None:
            return
        found = checkpoint.description["snapshot"]
        if found != self.job.snapshot.snapshot_id:
            raise MismatchError(
                f"run {self.job.run} was trained on snapshot {found}, not on {self.job.snapshot.snapshot_id}; resume it"
                " with its own snapshot, or start a new run"
            )
        self.model.load_state_dict(checkpoint.model)
        names = [name for name, _ in self.model.named_parameters()]
        load_optimizer_state(self.optimizer, names, checkpoint.optimizer)
        self.position = checkpoint.position
        self.average = {name: value.to(self.world.device) for name, value in checkpoint.average.items()}
        self.num_averaged = checkpoint.num_averaged
        self.history = list(checkpoint.description["history"])
        log.info("resuming run %s after epoch %d", self.job.run, self.position.epoch)


def _initial_model(job: Job) -> AST:
    torch.manual_seed(job.config.seed)
    if job.config.init:
        from ast_model.pretrained import load_pretrained

        return load_pretrained(job.config.init, job.model)
    return AST(job.model)


def loss_sum(logits_BC: Tensor, targets_BC: Tensor, loss: str) -> Tensor:
    """Sum the loss over clips: mean over classes of the binary cross-entropy, or the cross-entropy (soft targets)."""
    if loss == "bce":
        each_BC = nnf.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none")
        return each_BC.mean(dim=1).sum()
    return nnf.cross_entropy(logits_BC, targets_BC, reduction="sum")


def update_average(average: State, weights: Mapping[str, Tensor], count: int) -> None:
    """Let `average` be the mean of `count` states, of which `weights` is the last."""
    for name, value in weights.items():
        if count == 1:
            average[name] = value.detach().clone()
        else:
            average[name].lerp_(value, 1 / count)


def eval_metrics(evaluation: Evaluation, prefix: str) -> Metrics:
    """Name an evaluation's figures for the history and the tracker."""
    metrics = evaluation.metrics
    return {f"{prefix}/mAP": metrics.mAP, f"{prefix}/auc": metrics.auc, f"{prefix}/d_prime": metrics.d_prime}


def _line(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "epoch")


def _sync_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[Any]:
    """Let the ranks exchange gradients in the last micro-batch of a step only."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()


class _Meter:
    """Sums over the steps since the last log. The loss stays on its device until it is logged."""

    def __init__(self) -> None:
        self.grad_norm: Tensor | float = math.nan
        self.restart()

    def restart(self) -> None:
        self.loss: Tensor = torch.zeros(())
        self.num_steps = 0
        self.waited_s = 0.0
        self._started = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.loss = self.loss.to(loss.device) + loss
        self.num_steps += 1

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - started


class _Silence:
    def advance(self, amount: int, note: str = "") -> None:
        pass
