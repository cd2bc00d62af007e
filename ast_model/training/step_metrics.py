"""Metrics of the steps between two log lines. Nothing waits for the device while a step is taken.

A metric is measured as a tensor on the device, copied to the CPU while the next step runs, and logged from there: one
dict by the names that the tracker shows.
"""

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ast_model.distributed import World
from ast_model.flops import PEAK_FLOPS

Metrics = dict[str, float]
Item = TypeVar("Item")


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
class StepResult:
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


class StepWindow:
    """The steps since the last log line."""

    def __init__(self, world: World, num_samples: int, num_flops: int):
        """num_samples: of a step, over all ranks. num_flops: operations that a sample's training takes."""
        self.world, self.num_samples, self.num_flops = world, num_samples, num_flops
        self._start()

    def _start(self) -> None:
        self._results: list[StepResult] = []
        self._waited_s, self._started = 0.0, time.perf_counter()

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """Yield the items, and count the time until each comes as time without data."""
        while True:
            started = time.perf_counter()
            item = next(items, None)
            self._waited_s += time.perf_counter() - started
            if item is None:
                return
            yield item

    def add(self, result: StepResult) -> None:
        self._results.append(result)

    def close(self) -> "PendingMetrics":
        """End the window and start the next. Every rank calls it at the same step: they sum up their losses."""
        results, elapsed_s = self._results, time.perf_counter() - self._started
        loss = torch.stack([result.loss for result in results])
        bad = torch.stack([result.num_bad_in_row for result in results])
        loss_sum = self.world.sum(torch.where(bad > 0, 0.0, loss).sum()[None])
        values = torch.cat([loss_sum, results[-1].grad_norm[None].float(), bad])
        rate = len(results) * self.num_samples / elapsed_s
        metrics = {
            "train/learning_rate": results[-1].learning_rate,
            "system/samples_per_s": rate,
            "system/data_wait_share": self._waited_s / elapsed_s,
            "system/memory_peak_gib": memory_peak_gib(self.world.device),
            "system/num_ranks": float(self.world.size),
        }
        if (peak := peak_flops(self.world.device)) is not None:
            metrics["system/mfu"] = rate * self.num_flops / (peak * self.world.size)
        self._start()
        return PendingMetrics(results, metrics, *_start_copy(values))


def _start_copy(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start to copy values to the CPU; the event tells when they are there."""
    if values.device.type != "cuda":
        return values, None
    copy = values.to("cpu", non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


@dataclass(frozen=True)
class PendingMetrics:
    """Metrics of a window that are on their way from the device."""

    results: list[StepResult]
    metrics: Metrics
    """Values known without asking the device."""
    _values: Tensor
    _event: torch.cuda.Event | None

    def read(self) -> tuple[Metrics, list[StepResult], int]:
        """Return the metrics, the steps that were skipped, and the most of these in a row.

        Waits for the copy, which costs nothing once a later step is under way.
        """
        if self._event is not None:
            self._event.synchronize()
        loss_sum, grad_norm, *bad = self._values.tolist()
        skipped = [result for result, count in zip(self.results, bad, strict=True) if count]
        num_taken = len(self.results) - len(skipped)
        loss = loss_sum / num_taken if num_taken else math.nan
        return {"train/loss": loss, "train/grad_norm": grad_norm, **self.metrics}, skipped, int(max(bad))
