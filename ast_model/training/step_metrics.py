"""What a training says of itself. Nothing waits for the device while a step is taken."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ast_model.distributed import World

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense 16-bit peak by a part of the device's name, from the makers' data sheets; the first that fits counts."""
FLOPS_PER_FORWARD = 3
"""A training step's operations over those of its forward."""


def peak_flops(device: torch.device) -> float | None:
    """Return what the device can do at most, in operations a second; None if that isn't known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def memory_peak_gib(device: torch.device) -> float:
    """Return the most memory in use so far: the GPU's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class StepReport:
    """One step as this rank saw it. Tensors stay on their device."""

    step: int
    loss: Tensor
    """This rank's part of the mean over the global batch."""
    grad_norm: Tensor
    num_bad_in_row: Tensor
    """Steps up to this one that were skipped one after the other; 0 if this one was taken."""
    rows: np.ndarray
    """(B,) rows of the snapshot's index."""
    is_bad_B: Tensor
    """True for samples whose own loss is not finite."""
    learning_rate: float
    """The head's."""


@dataclass(frozen=True)
class Figures:
    """A stretch of steps, over all ranks, read from the device."""

    last_step: int
    learning_rate: float
    """Of the last step."""
    loss: float
    """Mean over the steps that were taken; NaN if none was."""
    grad_norm: float
    """Of the last step."""
    num_taken: int
    skipped: list[StepReport]
    num_bad_in_row: int
    """Most steps in a row that were skipped."""
    samples_per_s: float
    data_wait_share: float


@dataclass
class Meter:
    """Collects the steps since the last line of metrics."""

    world: World
    global_batch_size: int
    reports: list[StepReport] = field(default_factory=list)
    waited_s: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - started

    def close(self) -> "Stretch":
        """End the stretch and start the next. Every rank calls it at the same step."""
        now = time.perf_counter()
        elapsed_s = now - self.started
        loss = torch.stack([report.loss for report in self.reports])
        bad = torch.stack([report.num_bad_in_row for report in self.reports])
        taken = torch.where(bad > 0, 0.0, loss)
        figures = torch.cat([self.world.sum(taken.sum()[None]), self.reports[-1].grad_norm[None].float(), bad])
        stretch = Stretch(
            self.reports,
            _leave_device(figures),
            rate=len(self.reports) * self.global_batch_size / elapsed_s,
            wait_share=self.waited_s / elapsed_s,
        )
        self.reports, self.waited_s, self.started = [], 0.0, now
        return stretch


def _leave_device(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start to copy values to the CPU; the event tells when they are there."""
    if values.device.type != "cuda":
        return values, None
    copy = values.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


@dataclass(frozen=True)
class Stretch:
    """Steps whose figures are on their way from the device."""

    reports: list[StepReport]
    figures: tuple[Tensor, torch.cuda.Event | None]
    rate: float
    wait_share: float

    def read(self) -> Figures:
        """Wait for the figures, which costs nothing once a later step is under way."""
        values, event = self.figures
        if event is not None:
            event.synchronize()
        loss_sum, grad_norm, *bad = values.tolist()
        num_taken = bad.count(0)
        return Figures(
            last_step=self.reports[-1].step,
            learning_rate=self.reports[-1].learning_rate,
            loss=loss_sum / num_taken if num_taken else float("nan"),
            grad_norm=grad_norm,
            num_taken=num_taken,
            skipped=[report for report, count in zip(self.reports, bad, strict=True) if count],
            num_bad_in_row=int(max(bad)),
            samples_per_s=self.rate,
            data_wait_share=self.wait_share,
        )
