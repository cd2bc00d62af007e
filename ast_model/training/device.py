"""Numerical settings of the device: float32 precision, compilation and attention kernels."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from statistics import median

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ast_model.config import ASTConfig, Compile, TrainConfig
from ast_model.distributed import AUTOCAST_DTYPES, World
from ast_model.model import Attention
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

Shape = tuple[int, int, int, int]
"""Shape of the attention's inputs: clips, heads, tokens, head size."""
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def _attend_on(backend: SDPBackend) -> Attend:
    """Return torch's attention restricted to one backend.

    The restriction is part of the function and thus of the compiled graph. If `sdpa_kernel` wrapped the compiled code
    instead, inductor's cache would return code for another backend.
    """

    def attend(query_BHNK: Tensor, key_BHNK: Tensor, value_BHNK: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return nnf.scaled_dot_product_attention(query_BHNK, key_BHNK, value_BHNK)

    return attend


KERNELS: Mapping[str, Attend] = {
    "cudnn": _attend_on(SDPBackend.CUDNN_ATTENTION),
    "flash": _attend_on(SDPBackend.FLASH_ATTENTION),
    "efficient": _attend_on(SDPBackend.EFFICIENT_ATTENTION),
    "math": _attend_on(SDPBackend.MATH),
}
NUM_WARM_STEPS, NUM_TIMED_STEPS = 3, 5
MAX_TIMED_CLIPS = 32
"""Maximum number of clips in a timed batch. They fill a GPU, and larger batches would slow all kernels down alike."""
C_COMPILERS = ("cc", "gcc", "clang")


def set_matmul_precision(config: TrainConfig) -> None:
    """Make float32 products exact unless `--train.precision` is tf32.

    By default torch rounds the inputs of convolutions, including the patch embedding, but not the inputs of other
    products.
    """
    is_rounded = config.precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_rounded else "highest")
    torch.backends.cudnn.allow_tf32 = is_rounded


def choose_compile(config: TrainConfig, world: World) -> Compile:
    """Resolve `--train.compile auto` for this machine."""
    if config.compile != "auto":
        return config.compile
    # Triton needs a C compiler to build a launcher for each kernel.
    can_compile = world.device.type == "cuda" and find_spec("triton") and any(map(shutil.which, C_COMPILERS))
    return "blocks" if can_compile else "none"


class AttentionKernels:
    """Attention kernels in use, and fallbacks for non-finite gradients."""

    def __init__(self, names: Sequence[str], kernels: Mapping[str, Attend] = KERNELS):
        """names: kernels in order of preference. If empty, torch chooses."""
        self._names, self._kernels = list(names), kernels
        self.num_changes = 0

    @property
    def name(self) -> str:
        return self._names[0] if self._names else "torch's choice"

    @property
    def next_best(self) -> str | None:
        return self._names[1] if len(self._names) > 1 else None

    @contextmanager
    def used_by(self, model: nn.Module) -> Iterator[None]:
        """Run a model's attention on these kernels, including recomputations in the backward pass."""
        attentions = [module for module in model.modules() if isinstance(module, Attention)] if self._names else []
        for attention in attentions:
            attention.attend = self._kernels[self.name]
        try:
            yield
        finally:
            for attention in attentions:
                del attention.attend

    def change(self) -> None:
        """Switch to the next best kernels."""
        self._names.pop(0)
        self.num_changes += 1

    def after_change(self) -> "AttentionKernels":
        """Return the kernels that `change` would select, without switching to them."""
        return AttentionKernels(self._names[1:], self._kernels)


def choose_attention(config: TrainConfig, model: ASTConfig, world: World) -> AttentionKernels:
    """Return the kernels named by `--train.attention`. For auto on a GPU, return all kernels, fastest first.

    Raises ConfigError if the device does not support the named kernels.
    """
    if world.device.type == "cpu" and config.attention == "auto":
        log.debug("attention: torch chooses on a CPU")
        return AttentionKernels([])
    num_tokens = config.regularise.num_kept_patches(model.grid) + model.num_extra_tokens
    num_clips = min(config.clips_per_micro_batch, config.global_batch_size, MAX_TIMED_CLIPS)
    shape = (num_clips, model.num_heads, num_tokens, model.width // model.num_heads)
    dtype = AUTOCAST_DTYPES.get(world.resolve(config.precision), torch.float32)
    names = tuple(KERNELS) if config.attention == "auto" else (config.attention,)
    # Only the main rank measures. With different kernels, all ranks would wait for the slowest rank.
    seconds = world.broadcast_object(_seconds_of(names, shape, dtype, world.device) if world.is_main else None)
    if not seconds:
        raise ConfigError(
            f"{world.device} has no {dtype} kernel for --train.attention {config.attention}; set --train.attention auto"
        )
    order = sorted(seconds, key=lambda name: seconds[name])
    if world.is_main:
        measured = ", ".join(f"{name} {1000 * seconds[name]:.2f} ms" for name in order)
        log.info("attention: %s (forward and backward of %d × %d × %d × %d: %s)", order[0], *shape, measured)
    return AttentionKernels(order)


@cache
def _seconds_of(names: tuple[str, ...], shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Time all kernels that run on the device and give finite gradients."""
    timed = {name: seconds_of_attention(name, shape, dtype, device) for name in names}
    return {name: seconds for name, seconds in timed.items() if seconds is not None}


def seconds_of_attention(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> float | None:
    """Return the seconds of a forward and backward pass, or None if the device can't run these kernels."""
    query, key, value = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))

    def step() -> tuple[float, tuple[Tensor, ...]]:
        started = time.perf_counter()
        gradients = torch.autograd.grad(KERNELS[name](query, key, value).sum(), (query, key, value))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started, gradients

    try:
        # Several warm-up steps: loading, planning and autotuning take longer than many steps.
        for _ in range(NUM_WARM_STEPS - 1):
            step()
        _, gradients = step()
        if not all(bool(gradient.isfinite().all()) for gradient in gradients):
            return None
        return median(step()[0] for _ in range(NUM_TIMED_STEPS))
    except RuntimeError:  # "No available kernel", or out of memory for the materialised attention weights
        return None


def describe_device(config: TrainConfig, attention: AttentionKernels, world: World) -> dict[str, str]:
    """Describe the device and the resolved settings that affect speed and rounding."""
    is_gpu = world.device.type == "cuda"
    return {
        "device.name": torch.cuda.get_device_name(world.device) if is_gpu else "cpu",
        "device.precision": world.resolve(config.precision),
        "device.float32_products": torch.get_float32_matmul_precision(),
        "device.attention": attention.name,
        "device.compile": choose_compile(config, world),
        "device.micro_batch_size": str(config.micro_batch_size),
        "device.cudnn": str(torch.backends.cudnn.version()) if is_gpu else "none",
        "device.torch": torch.__version__,
    }
