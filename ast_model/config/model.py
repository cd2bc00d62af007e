"""Shape of the model, with the published sizes."""

from dataclasses import dataclass
from typing import Any

from pipeline.config import check_above_0
from pipeline.errors import ConfigError

Grid = tuple[int, int]
"""Number of patches along frequency and along time."""


@dataclass(frozen=True)
class ASTConfig:
    """Shape of the model; the defaults are the paper's."""

    num_classes: int = 527
    """Number of classes, the length of the logits."""
    num_frames: int = 1024
    """Frames (of 10 ms) of the fbank that the positions are made for; other lengths adapt them."""
    num_mel_bins: int = 128
    """Mel bins of the fbank."""
    patch_freq: int = 16
    """Height of a patch in mel bins."""
    patch_time: int = 16
    """Length of a patch in frames."""
    freq_stride: int = 10
    """Mel bins from one patch to the next; smaller than the patch means overlap."""
    time_stride: int = 10
    """Frames from one patch to the next."""
    width: int = 768
    """Size of a token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads per block; must divide the width."""
    mlp_ratio: int = 4
    """Size of the hidden layer of a block's MLP, in widths."""
    norm_eps: float = 1e-6
    """Epsilon of the LayerNorms in, after and before the blocks."""
    head_norm_eps: float = 1e-5
    """Epsilon of the head's LayerNorm."""
    num_extra_tokens: int = 2
    """Tokens before the patches: the class token and the distillation token, or only the class token (EAT)."""
    post_norm: bool = False
    """LayerNorms behind the sums in the blocks and before the first block (EAT), not before each branch and after the
    last block."""
    fixed_positions: bool = False
    """Positions as sines and cosines of a patch's place, counted from the clip's start (EAT), not learned ones."""

    def __post_init__(self) -> None:
        check_above_0(self, [name for name, value in vars(self).items() if not isinstance(value, bool)], "model.")
        if self.num_extra_tokens > 2 or (self.fixed_positions and self.width % 4):
            raise ConfigError(
                "expected at most 2 for --model.num-extra-tokens and, for --model.fixed-positions, a --model.width that"
                f" is a multiple of 4, found {self.num_extra_tokens} and {self.width}"
            )
        if self.width % self.num_heads:
            raise ConfigError(f"--model.num-heads must divide --model.width {self.width}, found {self.num_heads}")
        if self.num_mel_bins < self.patch_freq or self.num_frames < self.patch_time:
            raise ConfigError(
                f"A patch of {self.patch_freq} bins × {self.patch_time} frames must fit into the fbank of "
                f"{self.num_mel_bins} bins × {self.num_frames} frames; make the one smaller or the other larger."
            )

    @classmethod
    def nano(cls, **overrides: Any) -> "ASTConfig":
        """Size that a CPU can train: patches without overlap, four blocks, 0.8 M parameters."""
        return cls._sized(overrides, width=128, depth=4, num_heads=4, freq_stride=16, time_stride=16)

    @classmethod
    def tiny(cls, **overrides: Any) -> "ASTConfig":
        """Size of DeiT-tiny: 5.5 M parameters."""
        return cls._sized(overrides, width=192, num_heads=3)

    @classmethod
    def small(cls, **overrides: Any) -> "ASTConfig":
        """Size of DeiT-small: 22 M parameters."""
        return cls._sized(overrides, width=384, num_heads=6)

    @classmethod
    def base(cls, **overrides: Any) -> "ASTConfig":
        """Size of DeiT-base, the paper's: 87 M parameters."""
        return cls(**overrides)

    @classmethod
    def eat(cls, **overrides: Any) -> "ASTConfig":
        """Shape of EAT-base, and of SSLAM: 86 M parameters, patches without overlap."""
        grid = {"freq_stride": 16, "time_stride": 16}
        return cls._sized(
            overrides, **grid, num_extra_tokens=1, post_norm=True, fixed_positions=True, head_norm_eps=1e-6
        )

    @classmethod
    def _sized(cls, overrides: dict[str, Any], **size: Any) -> "ASTConfig":
        return cls(**(size | overrides))

    @property
    def grid(self) -> Grid:
        return self.grid_for(self.num_frames)

    def grid_for(self, num_frames: int) -> Grid:
        num_freq = (self.num_mel_bins - self.patch_freq) // self.freq_stride + 1
        num_time = (num_frames - self.patch_time) // self.time_stride + 1
        return num_freq, num_time

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        return self.num_patches + self.num_extra_tokens
