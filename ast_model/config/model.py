"""Shape of the model, with presets for published sizes."""

from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import check_above_0
from pipeline.errors import ConfigError

Grid = tuple[int, int]
"""Number of patches along frequency and time."""
Pooling = Literal["extra", "patches", "all"]


@dataclass(frozen=True)
class ASTConfig:
    """Shape of the model; the defaults are the paper's."""

    num_classes: int = 527
    """Number of classes, the length of the logits."""
    num_frames: int = 1024
    """Input length in frames of 10 ms. Pretrained positions are adapted to it."""
    num_mel_bins: int = 128
    """Mel bins of the fbank."""
    patch_freq: int = 16
    """Height of a patch in mel bins."""
    patch_time: int = 16
    """Length of a patch in frames."""
    freq_stride: int = 10
    """Mel bins between the starts of neighbouring patches. A stride below the patch size makes patches overlap."""
    time_stride: int = 10
    """Frames between the starts of neighbouring patches."""
    width: int = 768
    """Size of a token."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads per block. Must divide the width."""
    mlp_ratio: int = 4
    """Hidden size of the MLP relative to the width."""
    norm_eps: float = 1e-6
    """Epsilon of all LayerNorms except the head's."""
    head_norm_eps: float = 1e-5
    """Epsilon of the LayerNorm in the head."""
    num_extra_tokens: int = 2
    """Tokens before the patches: 2 for the class and distillation tokens, 1 for the class token only (EAT)."""
    post_norm: bool = False
    """Normalise after each residual sum and before the first block (EAT), instead of before each branch and after the
    last block."""
    fixed_positions: bool = False
    """Use sine and cosine positions (EAT) instead of learned positions."""
    patch_norm: bool = False
    """Normalise patches before adding positions (AudioMosaic)."""
    input_norm: bool = False
    """Normalise tokens before the first block, in addition to its own norm (AudioMosaic)."""
    final_norm: bool = True
    """Normalise tokens after the last block. AudioMosaic and fine-tuned AudioMAE only have the head's norm."""
    pooling: Pooling = "extra"
    """Tokens to average for the head: the extra tokens (AST, EAT), the patches (AudioMAE), or all (AudioMosaic)."""

    def __post_init__(self) -> None:
        check_above_0(self, [name for name, value in vars(self).items() if type(value) in (int, float)], "model.")
        if self.num_extra_tokens > 2 or (self.fixed_positions and self.width % 4):
            raise ConfigError(
                "--model.num-extra-tokens must be at most 2, and --model.fixed-positions needs a --model.width that is"
                f" a multiple of 4; found {self.num_extra_tokens} extra tokens and width {self.width}"
            )
        if self.post_norm and (self.input_norm or not self.final_norm):
            raise ConfigError(
                "--model.post-norm has its own LayerNorm before the first block and none after the last; omit"
                " --model.input-norm and --model.no-final-norm"
            )
        if self.width % self.num_heads:
            raise ConfigError(f"--model.num-heads must divide --model.width {self.width}, found {self.num_heads}")
        if self.num_mel_bins < self.patch_freq or self.num_frames < self.patch_time:
            raise ConfigError(
                f"A patch of {self.patch_freq} bins × {self.patch_time} frames must fit into the fbank of "
                f"{self.num_mel_bins} bins × {self.num_frames} frames; choose smaller patches or more bins and frames"
            )

    @classmethod
    def nano(cls, **overrides: Any) -> "ASTConfig":
        """Smallest size, for training on CPUs: patches without overlap, four blocks, 0.8 M parameters."""
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
        """Size of DeiT-base, used in the paper: 87 M parameters."""
        return cls(**overrides)

    @classmethod
    def eat(cls, **overrides: Any) -> "ASTConfig":
        """Shape of EAT-base and SSLAM: 86 M parameters, patches without overlap."""
        grid = {"freq_stride": 16, "time_stride": 16}
        return cls._sized(
            overrides, **grid, num_extra_tokens=1, post_norm=True, fixed_positions=True, head_norm_eps=1e-6
        )

    @classmethod
    def audiomosaic(cls, **overrides: Any) -> "ASTConfig":
        """Shape of AudioMosaic: 86 M parameters, patches without overlap, mean of all tokens."""
        norms = {"patch_norm": True, "input_norm": True, "final_norm": False, "head_norm_eps": 1e-6}
        return cls._sized(overrides, freq_stride=16, time_stride=16, num_extra_tokens=1, pooling="all", **norms)

    @classmethod
    def audiomae(cls, **overrides: Any) -> "ASTConfig":
        """Shape of a fine-tuned AudioMAE: 86 M parameters, patches without overlap, mean of the patches."""
        norms = {"final_norm": False, "head_norm_eps": 1e-6}
        return cls._sized(overrides, freq_stride=16, time_stride=16, num_extra_tokens=1, pooling="patches", **norms)

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
