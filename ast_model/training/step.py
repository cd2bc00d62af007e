"""Take optimizer steps on one rank, with micro-batches, mixed precision and checks for non-finite gradients."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ast_model.config import TrainConfig
from ast_model.data.augment import Normalisation, mix, perturb
from ast_model.data.loader import Batch
from ast_model.data.sampling import rank_slice
from ast_model.distributed import World
from ast_model.losses import clip_losses
from ast_model.model import AST, DropMasks
from ast_model.training.compile_cache import CompileCache
from ast_model.training.device import AttentionKernels, choose_attention, choose_compile
from ast_model.training.regularise import DropMaskSampler
from ast_model.training.state import TrainingState
from ast_model.training.step_metrics import StepResult
from pipeline.errors import TrainingError

log = logging.getLogger(__name__)


def micro_batches(config: TrainConfig, step: int, world: World) -> Iterator[slice]:
    """Yield this rank's micro-batches of a step, as slices of the epoch's draws."""
    share = rank_slice(step, config.global_batch_size, world.rank, world.size)
    for start in range(share.start, share.stop, config.clips_per_micro_batch):
        yield slice(start, min(start + config.clips_per_micro_batch, share.stop))


class ClipLosses(nn.Module):
    """Augmentation, model and loss in one module, which can be compiled as a whole.

    Mixup stays outside, because the number of mixed clips varies per batch and each number would be compiled
    separately.
    """

    def __init__(self, model: AST, config: TrainConfig, normalisation: Normalisation):
        super().__init__()
        self.model, self.config, self.normalisation = model, config, normalisation

    def forward(self, fbank_BTM: Tensor, uniforms: Tensor, targets_BC: Tensor, drop_masks: DropMasks) -> Tensor:
        """Return the losses (B,) of mixed clips."""
        mean, std = self.normalisation.mean, self.normalisation.std
        fbank_BTM = perturb(fbank_BTM, uniforms, self.config.augment, mean, std)
        logits_BC = self.model(fbank_BTM, drop_masks)
        return clip_losses(logits_BC.float(), targets_BC, self.config.loss)


class Stepper:
    """Prepares a model for this rank and device, and takes optimizer steps with it."""

    def __init__(
        self,
        state: TrainingState,
        config: TrainConfig,
        normalisation: Normalisation,
        world: World,
        attention: AttentionKernels | None = None,
        compile_cache: CompileCache | None = None,
    ):
        """attention: kernels to use. By default, the config chooses.

        compile_cache: cache to save in after the first step.
        """
        self.state, self.config, self.world = state, config, world
        model = state.model
        self.drop_masks = DropMaskSampler(config.regularise, model.config, config.global_batch_size, config.seed)
        self.num_bad_in_row = torch.zeros((), device=world.device)
        self.attention = attention or choose_attention(config, model.config, world)
        model.activation_checkpointing = config.activation_checkpointing
        self.compile, self.compile_cache = choose_compile(config, world), compile_cache
        self._must_warm_up = self.compile != "none"
        # Compile for static shapes. A smaller last micro-batch is compiled separately, because code for all sizes would
        # be slower.
        losses = ClipLosses(model, config, normalisation)
        for module in {"none": [], "blocks": list(model.blocks), "model": [losses]}[self.compile]:
            module.compile(dynamic=False)
        self.ranked_losses = world.wrap(losses)

    def train_step(self, epoch: int, step: int, batches: Iterator[Batch]) -> StepResult:
        """Take one step. If a loss or gradient on any rank is not finite, only the count of bad steps changes."""
        started = time.perf_counter()
        with explain_out_of_memory(self.config, self.world):
            result = self._train_step(epoch, step, batches)
        if self._must_warm_up:
            result.loss.item()  # wait for the device, or this would measure only the launch of kernels
            log.info("compiled the %s: the first step took %.1f s", self.compile, time.perf_counter() - started)
            self._must_warm_up = False
            if self.compile_cache and self.world.is_main:
                self.compile_cache.save()
        return result

    def _train_step(self, epoch: int, step: int, batches: Iterator[Batch]) -> StepResult:
        loss, rows, is_bad_B = self._accumulate(epoch, step, batches)
        grad_norm = self._update()
        return StepResult(
            step=step,
            loss=loss,
            grad_norm=grad_norm,
            num_bad_in_row=self.num_bad_in_row,
            rows=rows,
            is_bad_B=is_bad_B,
            learning_rate=self.state.optimizer.param_groups[-1][
                "lr"
            ],  # the head's group, which layer decay does not scale
        )

    def gradient_is_finite(self, epoch: int, step: int, batches: Iterator[Batch], attention: AttentionKernels) -> bool:
        """Return True if these attention kernels give a finite gradient for a step. The weights do not change."""
        used, self.attention = self.attention, attention
        try:
            self._accumulate(epoch, step, batches)
            return bool(self._grad_norm().isfinite())
        finally:
            self.attention = used
            self.state.optimizer.zero_grad(set_to_none=True)

    def _accumulate(self, epoch: int, step: int, batches: Iterator[Batch]) -> tuple[Tensor, np.ndarray, Tensor]:
        """Compute the gradient of a step. Returns its loss, the rows of its samples and a mask of non-finite losses."""
        self.state.optimizer.zero_grad(set_to_none=True)
        parts = list(micro_batches(self.config, step, self.world))
        first = step * self.config.global_batch_size
        loss = torch.zeros((), device=self.world.device)
        rows, are_bad = [], []
        with self.attention.used_by(self.state.model):
            for number, part in enumerate(parts, start=1):
                batch = next(batches)
                with _sync_gradients(self.ranked_losses, number == len(parts)):
                    losses_B = self._backward(batch, epoch, step, slice(part.start - first, part.stop - first))
                loss += losses_B.sum()
                rows.append(batch.rows)
                are_bad.append(~losses_B.isfinite())
        return loss, np.concatenate(rows), torch.cat(are_bad)

    def _backward(self, batch: Batch, epoch: int, step: int, part: slice) -> Tensor:
        """Accumulate the gradients of a micro-batch. Returns each clip's share (B,) of the global batch's mean loss."""
        config, device = self.config, self.world.device
        batch = batch.to(device)
        drop_masks = self.drop_masks.draw(epoch, step, part, device)
        fbank_BTM = mix(batch)
        with self.world.autocast(config.precision):
            losses_B = self.ranked_losses(fbank_BTM, batch.uniforms, batch.targets_BC, drop_masks)
        losses_B = losses_B / config.global_batch_size
        loss = losses_B.sum()
        # An infinite loss may have finite gradients. Make them NaN, so that all ranks skip the step.
        poison = torch.where(loss.detach().isfinite(), 1.0, math.nan)
        # DistributedDataParallel averages gradients over the ranks; the factor turns the mean into a sum.
        self.state.scaler.scale(loss * poison * self.world.size).backward()
        return losses_B.detach()

    def _update(self) -> Tensor:
        """Step the optimizer if the gradient is finite. Returns the gradient's norm."""
        optimizer, scaler = self.state.optimizer, self.state.scaler
        scaler.unscale_(optimizer)
        grad_norm = self._grad_norm()
        is_bad = (~grad_norm.isfinite()).float()
        # Count on the device: reading the norm here would make the CPU wait for it in every step.
        self.num_bad_in_row = (self.num_bad_in_row + 1) * is_bad
        if scaler.is_enabled():
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.found_inf = is_bad  # pyright: ignore[reportAttributeAccessIssue] (read by the fused kernel)
            optimizer.step()
        return grad_norm

    def _grad_norm(self) -> Tensor:
        gradients = [parameter.grad for parameter in self.state.model.parameters() if parameter.grad is not None]
        return nn.utils.get_total_norm(gradients)


@contextmanager
def explain_out_of_memory(config: TrainConfig, world: World) -> Iterator[None]:
    """Convert a GPU's out-of-memory errors to a TrainingError that names the settings to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        micro = config.clips_per_micro_batch
        if micro > 1:
            advice = f"try --train.micro-batch-size {micro // 2} (the result is the same, gradients add up)"
        else:
            advice = "no smaller micro-batch exists: try a smaller model"
        if not config.activation_checkpointing:
            advice += ", or --train.activation-checkpointing"
        message = f"out of memory on {world.device} with --train.micro-batch-size {micro}; {advice}"
        raise TrainingError(message) from error


def _sync_gradients(model: nn.Module, is_last: bool) -> AbstractContextManager[Any]:
    """Average gradients over the ranks only in the last micro-batch of a step."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()
