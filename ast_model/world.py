"""The ranks that train together: rank, device and collectives. Alone, each collective is the identity."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """One rank's view of all ranks."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with gradients averaged over the ranks."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks, on each of them."""
        if self.size == 1:
            return values
        total = values.to(self.device).clone()
        dist.all_reduce(total)
        return total

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenate (n_r, …) tensors of all ranks, whose n_r may differ by rank, in rank order, on the CPU."""
        if self.size == 1:
            return rows.cpu()
        counts = self._gather(torch.tensor([len(rows)]))
        longest = int(torch.stack(counts).max())
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = self._gather(padded)
        return torch.cat([part[: int(count)].cpu() for part, count in zip(parts, counts, strict=True)])

    def _gather(self, value: Tensor) -> list[Tensor]:
        value = value.to(self.device).contiguous()
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value)
        return parts

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world() -> Iterator[World]:
    """Join the ranks that the environment names (torchrun's variables, which Ray Train sets too), or be alone.

    A process group that is there already is used and left as it is.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if is_ours:
            dist.destroy_process_group()
