"""Structured patchout and drop path.

The masks depend only on (seed, epoch, step) and a sample's position in the global batch. Resuming needs no state, and a
sample gets the same masks on any number of ranks.

Sources: Koutini et al., "Efficient Training of Audio Transformers with Patchout", Interspeech 2022; Huang et al.,
"Deep Networks with Stochastic Depth", ECCV 2016.

Axes: G samples of the global batch, B samples of a micro-batch, K kept patches, L branches.
"""

import numpy as np
import torch
from torch import Tensor

from ast_model.config import ASTConfig, RegulariseConfig
from ast_model.model import DropMasks

NUM_BRANCHES_PER_BLOCK = 2


class DropMaskSampler:
    """Draws the masks of patchout and drop path."""

    def __init__(self, config: RegulariseConfig, model: ASTConfig, global_batch_size: int, seed: int):
        config.num_kept_patches(model.grid)  # raises ConfigError if patchout leaves no patches
        self.config, self.grid, self.depth = config, model.grid, model.depth
        self.global_batch_size, self.seed = global_batch_size, seed

    def draw(self, epoch: int, step: int, part: slice, device: torch.device) -> DropMasks:
        """Draw the masks of the samples `part` of a step's global batch."""
        config = self.config
        rng = np.random.default_rng((self.seed, epoch, step))
        num_lines, num_branches = sum(self.grid), NUM_BRANCHES_PER_BLOCK * self.depth
        uniforms = rng.random((self.global_batch_size, num_lines + num_branches), dtype=np.float32)[part]
        kept = scale = None
        if config.patchout_freq or config.patchout_time:
            kept = _to_device(torch.from_numpy(self._keep(uniforms[:, :num_lines])), device)
        if config.drop_path:
            scale = _to_device(self._scale(torch.from_numpy(uniforms[:, num_lines:])), device)
        return DropMasks(kept, scale)

    def _keep(self, uniforms: np.ndarray) -> np.ndarray:
        """Return the indices (B, K) of the patches in the kept rows and columns."""
        num_freq, num_time = self.grid
        rows = _choose(uniforms[:, :num_freq], num_freq - self.config.patchout_freq)
        columns = _choose(uniforms[:, num_freq:], num_time - self.config.patchout_time)
        return (rows[:, :, None] * num_time + columns[:, None, :]).reshape(len(uniforms), -1)

    def _scale(self, uniforms_BL: Tensor) -> Tensor:
        """Return branch factors (B, L): 0 for dropped branches, otherwise the factor that preserves the mean."""
        rates = torch.linspace(0, self.config.drop_path, self.depth).repeat_interleave(NUM_BRANCHES_PER_BLOCK)
        return (uniforms_BL >= rates) / (1 - rates)


def _to_device(value: Tensor, device: torch.device) -> Tensor:
    # Copy from pinned memory. For pageable memory, CUDA would first fill an internal buffer while the CPU waits.
    return value if device.type == "cpu" else value.pin_memory().to(device, non_blocking=True)


def _choose(uniforms: np.ndarray, count: int) -> np.ndarray:
    """Choose `count` random positions in each row, in ascending order."""
    return np.sort(np.argsort(uniforms, axis=1)[:, :count], axis=1).astype(np.int64)
