"""Ranks, devices and collectives for distributed training. On a single rank, every collective is the identity."""

import gc
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ast_model.config import DeviceType, Precision
from pipeline.errors import ConfigError, WorkerError, describe

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Communication backends per device type. With GPUs, CPU tensors use gloo, so they never wait for NCCL's queue."""
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
REMOTE_ADDRESS = "192.0.2.1"
"""Address from a block reserved for documentation. Looking up its route reveals the default network interface."""
DRIVER_VERSION = Path("/proc/driver/nvidia/version")
ANSWER_TIMEOUT_S = 50.0
"""Seconds for which ranks wait for each other before the first step."""
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Rank, world size and device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def resolve(self, precision: Precision) -> Precision:
        """Resolve the precision `auto` for this device."""
        if precision == "auto":
            if self.device.type != "cuda":
                return "fp32"
            # Older GPUs (V100, T4) only emulate bf16, far slower than their native fp16.
            has_bf16 = torch.cuda.get_device_capability(self.device)[0] >= 8
            return "bf16" if has_bf16 else "fp16"
        return precision

    def autocast(self, precision: Precision) -> torch.autocast:
        dtype = AUTOCAST_DTYPES.get(self.resolve(precision))
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model so that gradients are averaged over the ranks."""
        if self.size == 1:
            return model
        device_ids = [self.device] if self.device.type == "cuda" else None
        # The only buffers, EAT's positions, never change.
        return DistributedDataParallel(
            model, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks, on every rank."""
        if self.size == 1:
            return values
        total = values.to(self.device).clone()
        dist.all_reduce(total)
        return total

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Concatenate tensors (n_r, …) of all ranks in rank order, on the CPU. The lengths n_r may differ."""
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

    def broadcast_object(self, value: T | None) -> T:
        """Return the main rank's value on all ranks."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        assert values[0] is not None, "the main rank has a value"
        return values[0]

    def gather_texts(self, name: str, text: str, timeout_s: float) -> list[str]:
        """Return the texts of all ranks in rank order. Raises WorkerError naming the ranks that don't answer in time.

        name: unique within the process group. Collectives would only report that some rank is missing.
        """
        store = dist.distributed_c10d._get_default_store()
        keys = [f"{name}/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], text)
        try:
            store.wait(keys, timedelta(seconds=timeout_s))
        except dist.DistStoreError as error:
            silent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
            raise WorkerError(
                f"expected all {self.size} ranks within {timeout_s:.0f} s, found no answer of rank {', '.join(silent)};"
                f" this is rank {self.rank} on {socket.gethostname()}. Check the host of the silent rank"
            ) from error
        return [store.get(key).decode() for key in keys]

    def seconds_of_all_reduce(self, num_bytes: int, timeout_s: float) -> float:
        """Time an all-reduce of this size between the devices. Raises WorkerError if it does not end in time."""
        # A group of its own limits the time of the collective itself, which otherwise blocks the end of the process.
        timeout = timedelta(seconds=timeout_s)
        group: Any = None
        try:
            group = dist.new_group(timeout=timeout)
            seconds = 0.0
            for num_values in (1, num_bytes // 4):  # the first exchange connects the ranks
                values = torch.zeros(num_values, device=self.device)
                started = time.perf_counter()
                dist.all_reduce(values, group=group)
                values[0].item()  # wait for the device
                seconds = time.perf_counter() - started
            return seconds
        except RuntimeError as error:
            raise WorkerError(
                f"all {self.size} ranks answer, but they could not exchange {num_bytes / 1e6:.0f} MB within"
                f" {timeout_s:.0f} s: {describe(error)}. Open all ports between the hosts, and set"
                f" {GLOO_INTERFACE} or NCCL_SOCKET_IFNAME if they have several networks"
            ) from error
        finally:
            if group is not None:
                dist.destroy_process_group(group)

    def barrier(self) -> None:
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))


class AnyRankFlag:
    """Asynchronous any-reduce of a flag over the ranks. The result is one step late.

    The reduction runs during the step, so that ranks never wait for each other.
    """

    def __init__(self, world: World):
        self.world = world
        self._flags: tuple[Tensor, dist.Work] | None = None

    def next(self, flag: bool) -> bool:
        """Submit this rank's flag. Returns the any-reduce of the previous call, or `flag` itself on a single rank."""
        if self.world.size == 1:
            return flag
        is_set = self.close()
        flags = torch.tensor([float(flag)])
        # A CPU tensor, reduced by gloo: NCCL would queue it behind the gradients.
        work = dist.all_reduce(flags, async_op=True)
        assert work is not None, "an asynchronous collective returns its work"
        self._flags = flags, work
        return is_set

    def close(self) -> bool:
        """Wait for the last reduction and return its result."""
        if self._flags is None:
            return False
        flags, work = self._flags
        self._flags = None
        work.wait()
        return bool(flags.item())


@contextmanager
def join_world(device_type: DeviceType) -> Iterator[World]:
    """Join the ranks that torchrun or Ray Train describe in environment variables. Without them there is one rank.

    The setting chooses the device, not the list of visible devices: Ray exposes GPUs to workers that did not request
    any, and several ranks would then share one. An existing process group is reused and left open. Raises ConfigError
    if there is no GPU for this rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if device_type == "cuda":
        device = _local_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if size == 1:
        yield World(0, 1, device)
        return
    is_ours = not dist.is_initialized()
    if is_ours:
        select_gloo_interface(_node_address(is_alone=int(os.environ.get("LOCAL_WORLD_SIZE", size)) == size))
        dist.init_process_group(BACKENDS[device.type])
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        if is_ours:
            gc.collect()  # a model that refers to the group would keep its threads alive at exit
            dist.destroy_process_group()


def select_gloo_interface(address: str) -> None:
    """Make gloo use the network interface with this node's address, unless `GLOO_SOCKET_IFNAME` is set.

    By default gloo listens on the address of the host name. On Debian this is 127.0.1.1, which other hosts can't reach,
    and in many clusters host names don't resolve.
    """
    for interface, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            os.environ.setdefault(GLOO_INTERFACE, interface)
            return


def _node_address(is_alone: bool) -> str:
    """Return the address at which other ranks reach this node. is_alone: all ranks run on this node."""
    address = _address_towards(os.environ.get("MASTER_ADDR", ""))
    if address.startswith("127.") and not is_alone:  # the main rank's own name may resolve to 127.0.1.1
        return _address_towards(REMOTE_ADDRESS)
    return address


def _address_towards(host: str) -> str:
    """Return this node's source address for packets to `host`, or "" if the host is unknown or unreachable."""
    try:
        family, *_, address = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends no packet
            return probe.getsockname()[0]
    except OSError:
        return ""


def _local_gpu(local_rank: int) -> torch.device:
    check_cuda()
    num_gpus = torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ConfigError(
            f"expected one GPU per rank on this machine, found {num_gpus} GPUs for local rank {local_rank} (ranks"
            f" count from 0). Start at most {num_gpus} ranks (torchrun: --nproc-per-node {num_gpus}), or train on"
            " CPUs: --no-use-gpu"
        )
    return torch.device("cuda", local_rank)


def check_cuda() -> None:
    """Raise ConfigError, naming the driver and CUDA versions, if torch can't use a GPU on this machine."""
    if torch.cuda.is_available():
        return
    try:
        torch.cuda.init()
        reason = "no GPU is visible"
    except (RuntimeError, AssertionError) as error:  # raised by builds without CUDA and by broken drivers
        reason = str(error).split("\n")[0][:200]
    raise ConfigError(
        f"expected a GPU that torch {torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}, can use,"
        f" found {driver_version()}: {reason}. Install a matching driver and torch, or train on CPUs:"
        " --no-use-gpu"
    )


def driver_version() -> str:
    """Return the version of this machine's NVIDIA driver."""
    try:
        found = re.search(r"\d{3}\.[\d.]+", DRIVER_VERSION.read_text())
    except OSError:
        return "no NVIDIA driver"
    return f"NVIDIA driver {found[0] if found else 'of unknown version'}"
