"""The Audio Spectrogram Transformer: patches of an fbank, two extra tokens, pre-norm blocks, a head.

Letters at the end of a tensor's name are its axes: B batch, T frames, M mel bins, F patches along frequency,
P patches, N tokens (P + 2), D width, H heads, C classes.

Source: Gong, Chung and Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021; sizes and
initialisation are DeiT's (Touvron et al., 2021).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.errors import ConfigError, InputError

Grid = tuple[int, int]
"""Number of patches along frequency and along time."""

NUM_EXTRA_TOKENS = 2
"""The class token and the distillation token stand before the patches."""


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
    """Epsilon of the LayerNorms in and after the blocks."""
    head_norm_eps: float = 1e-5
    """Epsilon of the head's LayerNorm."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise ConfigError(f"model.{name} must be positive, but is {value}.")
        if self.width % self.num_heads:
            raise ConfigError(f"model.num_heads must divide width {self.width}, but is {self.num_heads}.")
        if self.num_mel_bins < self.patch_freq or self.num_frames < self.patch_time:
            raise ConfigError(
                f"A patch of {self.patch_freq} bins × {self.patch_time} frames must fit into the fbank of "
                f"{self.num_mel_bins} bins × {self.num_frames} frames; make the one smaller or the other larger."
            )

    @classmethod
    def tiny(cls, **overrides) -> "ASTConfig":
        """Size of DeiT-tiny: 5.5 M parameters."""
        return cls(**{"width": 192, "num_heads": 3, **overrides})

    @classmethod
    def small(cls, **overrides) -> "ASTConfig":
        """Size of DeiT-small: 22 M parameters."""
        return cls(**{"width": 384, "num_heads": 6, **overrides})

    @classmethod
    def base(cls, **overrides) -> "ASTConfig":
        """Size of DeiT-base, the paper's: 87 M parameters."""
        return cls(**overrides)

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
        return self.num_patches + NUM_EXTRA_TOKENS

    @property
    def num_forward_flops(self) -> int:
        """Count the operations in the matrix products of a forward, per sample, two per multiply-add.

        A training step takes three times as many.
        """
        return self.flops_with(self.num_patches)

    def flops_with(self, num_patches_kept: int) -> int:
        """Count the operations of a forward whose blocks see only some of the patches."""
        num_tokens = num_patches_kept + NUM_EXTRA_TOKENS
        linear = (4 + 2 * self.mlp_ratio) * num_tokens * self.width**2
        attention = 2 * num_tokens**2 * self.width
        patches = self.num_patches * self.width * self.patch_freq * self.patch_time
        return 2 * (self.depth * (linear + attention) + patches + self.width * self.num_classes)


@dataclass(frozen=True)
class Noise:
    """What regularises one batch's forward while training. Letters: K kept patches, L branches (two per block)."""

    kept_BK: Tensor | None = None
    """Numbers of the patches that each clip keeps, ascending; all of them unless set."""
    scale_BL: Tensor | None = None
    """What each branch's output is multiplied by, 0 for one that is dropped; 1 unless set."""


class AST(nn.Module):
    """Tag an fbank, normalised as (x - mean) / (2 · std) after padding."""

    recomputes_blocks = False
    """Keep only the blocks' inputs in the forward of a training, and compute the rest again in the backward."""

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.config = config
        patch, stride = (config.patch_freq, config.patch_time), (config.freq_stride, config.time_stride)
        self.patch_embedding = nn.Conv2d(1, config.width, kernel_size=patch, stride=stride)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = nn.Parameter(torch.empty(1, config.num_tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = Head(config)
        for token in (self.class_token, self.distillation_token, self.positions):
            nn.init.trunc_normal_(token, std=0.02)
        self.apply(_init_linear)

    def forward(self, fbank_BTM: Tensor, noise: Noise | None = None) -> Tensor:
        """Return the logits (B, C)."""
        return self.head(self.embed(fbank_BTM, noise))

    def embed(self, fbank_BTM: Tensor, noise: Noise | None = None) -> Tensor:
        """Return one embedding per clip (B, D): the mean of the class and the distillation token."""
        return self.tokens(fbank_BTM, noise)[:, :NUM_EXTRA_TOKENS].mean(dim=1)

    def tokens(self, fbank_BTM: Tensor, noise: Noise | None = None) -> Tensor:
        """Return all tokens after the last LayerNorm (B, N, D), patches frequency by frequency.

        Raises InputError if the fbank has other mel bins than the config, or is shorter than a patch.
        """
        tokens_BND = self._embed_patches(fbank_BTM)
        noise = noise or Noise()
        if noise.kept_BK is not None:
            tokens_BND = _keep_patches(tokens_BND, noise.kept_BK)
        for number, block in enumerate(self.blocks):
            scale_B2 = None if noise.scale_BL is None else noise.scale_BL[:, 2 * number : 2 * number + 2]
            if self.recomputes_blocks and torch.is_grad_enabled():
                tokens_BND = checkpoint(block, tokens_BND, scale_B2, use_reentrant=False)
            else:
                tokens_BND = block(tokens_BND, scale_B2)
        return self.norm(tokens_BND)

    def _embed_patches(self, fbank_BTM: Tensor) -> Tensor:
        config = self.config
        _check_shape(fbank_BTM, config)
        patches_BDFT = self.patch_embedding(fbank_BTM.transpose(1, 2).unsqueeze(1))
        patches_BPD = patches_BDFT.flatten(2).transpose(1, 2)
        # Each token by itself: a gradient that is a part of another's has strides that DDP copies and warns about.
        # Not len(), which an export to ONNX takes for a constant.
        num_clips = patches_BPD.shape[0]
        extra_B1D = [token.expand(num_clips, -1, -1) for token in (self.class_token, self.distillation_token)]
        tokens_BND = torch.cat([*extra_B1D, patches_BPD], dim=1)
        return tokens_BND + adapt_positions(self.positions, config.grid, config.grid_for(fbank_BTM.shape[1]))


class Block(nn.Module):
    """Let tokens attend to each other, then transform each by itself; both add to what was there."""

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, tokens_BND: Tensor, scale_B2: Tensor | None = None) -> Tensor:
        change_BND = self.attention(self.attention_norm(tokens_BND))
        tokens_BND = tokens_BND + (change_BND if scale_B2 is None else change_BND * scale_B2[:, :1, None])
        change_BND = self.mlp(self.mlp_norm(tokens_BND))
        return tokens_BND + (change_BND if scale_B2 is None else change_BND * scale_B2[:, 1:, None])


class Attention(nn.Module):
    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        qkv_BN3HK = self.qkv(tokens_BND).unflatten(2, (3, self.num_heads, -1))
        query_BHNK, key_BHNK, value_BHNK = qkv_BN3HK.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHNK = nnf.scaled_dot_product_attention(query_BHNK, key_BHNK, value_BHNK)
        return self.out(mixed_BHNK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.down = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.down(nnf.gelu(self.up(tokens_BND)))


class Head(nn.Module):
    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.head_norm_eps)
        self.linear = nn.Linear(config.width, config.num_classes)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        return self.linear(self.norm(embedding_BD))


def _keep_patches(tokens_BND: Tensor, kept_BK: Tensor) -> Tensor:
    extra_BED, patches_BPD = tokens_BND[:, :NUM_EXTRA_TOKENS], tokens_BND[:, NUM_EXTRA_TOKENS:]
    kept_BKD = patches_BPD.gather(1, kept_BK[..., None].expand(-1, -1, patches_BPD.shape[2]))
    return torch.cat([extra_BED, kept_BKD], dim=1)


def _check_shape(fbank_BTM: Tensor, config: ASTConfig) -> None:
    shape = tuple(fbank_BTM.shape)
    if len(shape) != 3 or shape[1] < config.patch_time or shape[2] != config.num_mel_bins:
        raise InputError(
            f"Expected an fbank of shape (batch, {config.patch_time} or more frames, {config.num_mel_bins} bins), "
            f"but found {shape}. Pad it, or compute it with as many bins as the model has."
        )


def adapt_positions(positions_1ND: Tensor, source: Grid, target: Grid) -> Tensor:
    """Fit positions made for one grid to another, as AST does: time first, then frequency.

    An axis that gets shorter keeps its middle, one that gets longer is interpolated; extra tokens stay.
    """
    if source == target:
        return positions_1ND
    extra_1ED, patches_1PD = positions_1ND.split([NUM_EXTRA_TOKENS, source[0] * source[1]], dim=1)
    patches_1DFT = patches_1PD.transpose(1, 2).unflatten(2, source)
    patches_1DFT = _fit_axis(patches_1DFT, 3, target[1])
    patches_1DFT = _fit_axis(patches_1DFT, 2, target[0])
    return torch.cat([extra_1ED, patches_1DFT.flatten(2).transpose(1, 2)], dim=1)


def _fit_axis(patches_1DFT: Tensor, axis: int, length: int) -> Tensor:
    found = patches_1DFT.shape[axis]
    if length <= found:
        return patches_1DFT.narrow(axis, found // 2 - length // 2, length)
    num_freq, num_time = patches_1DFT.shape[2:]
    size = (length, num_time) if axis == 2 else (num_freq, length)
    return nnf.interpolate(patches_1DFT, size=size, mode="bilinear")


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
