"""Metrics of the steps between two log lines, without waiting for the device.

Metrics are tensors on the device. When a window of steps closes, its metrics are copied to the CPU during the next step
and logged after that step.
"""

import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ast_model.config import ASTConfig
from ast_model.distributed import World
from ast_model.flops import PEAK_FLOPS, training_flops
from ast_model.training.plan import TrainingPlan

Metrics = dict[str, float]
Item = TypeVar("Item")


def peak_flops(device: torch.device) -> float | None:
    """Return the device's 16-bit peak in operations per second, or None for an unknown device."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def memory_peak_gib(device: torch.device) -> float:
    """Return the peak memory use of the GPU or, on a CPU, of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class StepResult:
    """Results of one step on this rank. Tensors stay on the device."""

    step: int
    loss: Tensor
    """This rank's share of the mean loss over the global batch."""
    grad_norm: Tensor
    num_bad_in_row: Tensor
    """Number of consecutive skipped steps up to this step; 0 if it was taken."""
    rows: np.ndarray
    """Rows (B,) of the samples in the snapshot's index."""
    is_bad_B: Tensor
    """Mask (B,) of samples with a non-finite loss."""
    learning_rate: float
    """Learning rate of the head."""


@dataclass(frozen=True)
class WindowMetrics:
    """Metrics of the steps between two log lines, on the CPU."""

    results: list[StepResult]
    skipped: list[StepResult]
    """Steps that were skipped because of a non-finite loss or gradient."""
    num_bad_in_row: int
    """Largest number of consecutive skipped steps."""
    metrics: Metrics
    """Metrics by their names in the tracker."""

    @property
    def num_taken(self) -> int:
        return len(self.results) - len(self.skipped)

    @property
    def last_step(self) -> int:
        return self.results[-1].step


class StepMetrics:
    """Collects the metrics of an epoch's steps in windows of `log_every_steps` steps."""

    def __init__(self, plan: TrainingPlan, model: ASTConfig, world: World, log: Callable[[WindowMetrics], None]):
        """log: called with each window once the device has sent its values."""
        config = plan.config
        self._world, self._log = world, log
        self._log_every, self._num_steps = config.log_every_steps, plan.num_steps
        self._num_samples = config.global_batch_size
        self._flops = training_flops(model, config.regularise.num_kept_patches(model.grid))
        self._pending: _PendingWindow | None = None
        self._open_window()

    def _open_window(self) -> None:
        self._results: list[StepResult] = []
        self._waited_s, self._started = 0.0, time.perf_counter()

    def timing(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yield the batches, and measure the time spent waiting for them."""
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def add(self, result: StepResult) -> None:
        """Add a step, and log the previous window, whose values have arrived from the device by now."""
        self._results.append(result)
        self.flush()

    def is_due(self, num_steps: int) -> bool:
        """Return True if a window ends after `num_steps` steps of the epoch."""
        return num_steps % self._log_every == 0 or num_steps == self._num_steps

    def close_window(self) -> None:
        """End the window and start the next. All ranks call this at the same step, because it sums their losses."""
        results, elapsed_s = self._results, time.perf_counter() - self._started
        loss = torch.stack([result.loss for result in results])
        bad = torch.stack([result.num_bad_in_row for result in results])
        loss_sum = self._world.sum(torch.where(bad > 0, 0.0, loss).sum()[None])
        values = torch.cat([loss_sum, results[-1].grad_norm[None].float(), bad])
        rate = len(results) * self._num_samples / elapsed_s
        metrics = {
            "train/learning_rate": results[-1].learning_rate,
            "system/samples_per_s": rate,
            "system/data_wait_share": self._waited_s / elapsed_s,
            "system/memory_peak_gib": memory_peak_gib(self._world.device),
            "system/num_ranks": float(self._world.size),
        }
        if (peak := peak_flops(self._world.device)) is not None:
            metrics["system/mfu"] = rate * self._flops / (peak * self._world.size)
        self._open_window()
        self._pending = _PendingWindow(results, metrics, *_start_copy(values))

    def flush(self) -> None:
        """Log the closed window unless it has been logged."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._log(pending.read())


def _start_copy(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start copying values to the CPU. The event, if any, marks the end of the copy."""
    if values.device.type != "cuda":
        return values, None
    copy = values.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


@dataclass(frozen=True)
class _PendingWindow:
    """A closed window, while the device is still sending its values."""

    results: list[StepResult]
    metrics: Metrics
    """Metrics that the CPU knows already."""
    _values: Tensor
    _event: torch.cuda.Event | None

    def read(self) -> WindowMetrics:
        """Return the metrics. Waiting for the copy costs no time once a later step has been launched."""
        if self._event is not None:
            self._event.synchronize()
        loss_sum, grad_norm, *bad = self._values.tolist()
        skipped = [result for result, count in zip(self.results, bad, strict=True) if count]
        num_taken = len(self.results) - len(skipped)
        loss = loss_sum / num_taken if num_taken else math.nan
        metrics = {"train/loss": loss, "train/grad_norm": grad_norm, **self.metrics}
        return WindowMetrics(self.results, skipped, int(max(bad)), metrics)
