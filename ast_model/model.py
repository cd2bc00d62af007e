"""The Audio Spectrogram Transformer: a vision transformer over patches of an fbank.

Capital letters at the end of a tensor's name are its axes: B batch, T frames, M mel bins, F patches along frequency,
P patches, N tokens (E extra tokens, then P patches), D width, H heads, C classes.

Sources: Gong, Chung and Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021, with the sizes and the
initialisation of DeiT (Touvron et al., 2021). With post-norm, one extra token and fixed positions, the model is EAT
(Chen et al., "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer", IJCAI 2024). SSLAM (ICLR 2025) has
the same shape. With norms of the patches and of the input, no final norm and the mean of all tokens, it is
AudioMosaic (Huang et al., ICML 2026), and with the mean of the patches AudioMAE (Huang et al., NeurIPS 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ast_model.config import ASTConfig, Grid
from pipeline.errors import InputError


@dataclass(frozen=True)
class DropMasks:
    """Patches and branches to drop in one forward pass. Axes: K kept patches, L branches (two per block)."""

    kept_BK: Tensor | None = None
    """Indices of the patches to keep for each clip, ascending. Default: all patches."""
    scale_BL: Tensor | None = None
    """Factor for each branch's output; 0 drops the branch. Default: 1."""


class AST(nn.Module):
    """A transformer that maps normalised fbanks (B, T, M) to logits (B, C).

    The input is (fbank - mean) / (2 · std), including the padding. If T differs from the config, each forward pass
    adapts the positions.

    >>> model = AST(ASTConfig.nano(num_classes=5, num_frames=128))
    >>> model(torch.zeros(2, 128, 128)).shape
    torch.Size([2, 5])
    >>> model.embed(torch.zeros(2, 300, 128)).shape
    torch.Size([2, 128])
    """

    activation_checkpointing = False
    """Store only the inputs of the blocks for the backward pass and recompute the rest, to save memory."""

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.config = config
        patch, stride = (config.patch_freq, config.patch_time), (config.freq_stride, config.time_stride)
        self.patch_embedding = nn.Conv2d(1, config.width, kernel_size=patch, stride=stride)
        self.patch_norm = _norm(config, config.patch_norm)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        if config.num_extra_tokens == 2:
            self.distillation_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions: Tensor
        if config.fixed_positions:
            self.register_buffer("positions", fixed_positions(config, config.grid), persistent=False)
        else:
            self.positions = nn.Parameter(torch.empty(1, config.num_tokens, config.width))
        self.input_norm = _norm(config, config.input_norm)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = _norm(config, config.final_norm)
        self.head = Head(config)
        for token in self.parameters(recurse=False):
            nn.init.trunc_normal_(token, std=0.02)
        self.apply(_init_linear)

    def forward(self, fbank_BTM: Tensor, drop_masks: DropMasks | None = None) -> Tensor:
        """Return the logits (B, C), float32 under any autocast."""
        embedding_BD = self.embed(fbank_BTM, drop_masks)
        # Half precision would round logits to few distinct values, and ties between clips would lower the mAP.
        with torch.autocast(embedding_BD.device.type, enabled=False):
            return self.head(embedding_BD.float())

    def embed(self, fbank_BTM: Tensor, drop_masks: DropMasks | None = None) -> Tensor:
        """Return one embedding per clip (B, D): the mean of the pooled tokens after the last block."""
        num_extra = self.config.num_extra_tokens
        if self.config.pooling == "extra":
            # The last block skips the output patches, which the head does not read.
            return self._tokens(fbank_BTM, drop_masks, num_extra).mean(dim=1)
        tokens_BND = self._tokens(fbank_BTM, drop_masks, None)
        return tokens_BND[:, num_extra if self.config.pooling == "patches" else 0 :].mean(dim=1)

    def tokens(self, fbank_BTM: Tensor, drop_masks: DropMasks | None = None) -> Tensor:
        """Return all tokens after the last block and the final norm (B, N, D), patches in frequency-major order.

        Raises InputError if the fbank is shorter than a patch or its number of mel bins differs from the config.
        """
        return self._tokens(fbank_BTM, drop_masks, None)

    def _tokens(self, fbank_BTM: Tensor, drop_masks: DropMasks | None, num_out: int | None) -> Tensor:
        """Return all tokens of the last block, or only the first `num_out`."""
        tokens_BND = self._embed_patches(fbank_BTM)
        drop_masks = drop_masks or DropMasks()
        if drop_masks.kept_BK is not None:
            tokens_BND = _keep_patches(tokens_BND, drop_masks.kept_BK, self.config.num_extra_tokens)
        tokens_BND = self.norm(tokens_BND) if self.config.post_norm else self.input_norm(tokens_BND)
        for number, block in enumerate(self.blocks):
            scale_B2 = None if drop_masks.scale_BL is None else drop_masks.scale_BL[:, 2 * number : 2 * number + 2]
            num_out_here = num_out if block is self.blocks[-1] else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens_BND = cast(Tensor, checkpoint(block, tokens_BND, scale_B2, num_out_here, use_reentrant=False))
            else:
                tokens_BND = block(tokens_BND, scale_B2, num_out_here)
        return tokens_BND if self.config.post_norm else self.norm(tokens_BND)

    def _embed_patches(self, fbank_BTM: Tensor) -> Tensor:
        config = self.config
        _check_shape(fbank_BTM, config)
        patches_BPD = self.patch_norm(_embed_as_product(fbank_BTM.transpose(1, 2), self.patch_embedding))
        # Keep one parameter per extra token. Slices of a joint parameter would have strided gradients, which DDP copies
        # with a warning.
        # shape[0] instead of len(), which an export to ONNX would record as a constant.
        num_clips = patches_BPD.shape[0]
        extra = [self.class_token] if config.num_extra_tokens == 1 else [self.class_token, self.distillation_token]
        extra_B1D = [token.expand(num_clips, -1, -1) for token in extra]
        tokens_BND = torch.cat([*extra_B1D, patches_BPD], dim=1)
        return tokens_BND + self._positions_for(config.grid_for(fbank_BTM.shape[1]))

    def _positions_for(self, grid: Grid) -> Tensor:
        if not self.config.fixed_positions:
            return adapt_positions(self.positions, self.config.grid, grid)
        if grid == self.config.grid:
            return self.positions
        return fixed_positions(self.config, grid).to(self.positions)


class Block(nn.Module):
    """Self-attention and an MLP, each with a residual connection and a LayerNorm before the branch or after the sum."""

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.post_norm = config.post_norm
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, tokens_BND: Tensor, scale_B2: Tensor | None = None, num_out: int | None = None) -> Tensor:
        """Return all tokens after the block, or only the first `num_out`, which still attend to all tokens."""
        attention_scale, mlp_scale = (None, None) if scale_B2 is None else scale_B2[:, :, None, None].unbind(dim=1)
        change_BND = self.attention(tokens_BND if self.post_norm else self.attention_norm(tokens_BND), num_out)
        tokens_BND = tokens_BND[:, :num_out] + _scale(change_BND, attention_scale)
        if self.post_norm:
            tokens_BND = self.attention_norm(tokens_BND)
            return self.mlp_norm(tokens_BND + _scale(self.mlp(tokens_BND), mlp_scale))
        return tokens_BND + _scale(self.mlp(self.mlp_norm(tokens_BND)), mlp_scale)


class Attention(nn.Module):
    """Multi-head self-attention with one joint projection for query, key and value."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(nnf.scaled_dot_product_attention)
    """Softmax attention of query, key and value (B, H, N, K). The trainer replaces it to select kernels."""

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, tokens_BND: Tensor, num_queries: int | None = None) -> Tensor:
        if num_queries is None:
            qkv_BN3HK = self.qkv(tokens_BND).unflatten(2, (3, self.num_heads, -1))
            # Unbind before transposing, so that the backward pass writes the three gradients once, side by side.
            query_BHNK, key_BHNK, value_BHNK = (part_BNHK.transpose(1, 2) for part_BNHK in qkv_BN3HK.unbind(2))
        else:
            width = tokens_BND.shape[2]
            weights, biases = self.qkv.weight.split([width, 2 * width]), self.qkv.bias.split([width, 2 * width])
            query_BQD = nnf.linear(tokens_BND[:, :num_queries], weights[0], biases[0])
            kv_BN2HK = nnf.linear(tokens_BND, weights[1], biases[1]).unflatten(2, (2, self.num_heads, -1))
            query_BHNK = query_BQD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            key_BHNK, value_BHNK = (part_BNHK.transpose(1, 2) for part_BNHK in kv_BN2HK.unbind(2))
        mixed_BHNK = self.attend(query_BHNK, key_BHNK, value_BHNK)
        return self.out(mixed_BHNK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with a GELU in between."""

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_ratio * config.width)
        self.down = nn.Linear(config.mlp_ratio * config.width, config.width)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.down(nnf.gelu(self.up(tokens_BND)))


class Head(nn.Module):
    """A LayerNorm and a linear layer from embeddings (B, D) to logits (B, C)."""

    def __init__(self, config: ASTConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width, eps=config.head_norm_eps)
        self.linear = nn.Linear(config.width, config.num_classes)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        return self.linear(self.norm(embedding_BD))


def _norm(config: ASTConfig, is_used: bool) -> nn.Module:
    return nn.LayerNorm(config.width, eps=config.norm_eps) if is_used else nn.Identity()


def _scale(change_BND: Tensor, scale_B11: Tensor | None) -> Tensor:
    return change_BND if scale_B11 is None else change_BND * scale_B11


def _embed_as_product(fbank_BMT: Tensor, conv: nn.Conv2d) -> Tensor:
    """Compute the patch embedding (B, P, D), in frequency-major order, as a matrix product.

    cuDNN has no fast convolution for one input channel. It took 4 of the 141 ms of a training step of AST-base on an
    H100.
    """
    (patch_freq, patch_time), (freq_stride, time_stride) = conv.kernel_size, conv.stride
    patches_BFTKL = fbank_BMT.unfold(1, patch_freq, freq_stride).unfold(2, patch_time, time_stride)
    return nnf.linear(patches_BFTKL.flatten(3).flatten(1, 2), conv.weight.flatten(1), conv.bias)


def _keep_patches(tokens_BND: Tensor, kept_BK: Tensor, num_extra: int) -> Tensor:
    extra_BED, patches_BPD = tokens_BND[:, :num_extra], tokens_BND[:, num_extra:]
    kept_BKD = patches_BPD.gather(1, kept_BK[..., None].expand(-1, -1, patches_BPD.shape[2]))
    return torch.cat([extra_BED, kept_BKD], dim=1)


def _check_shape(fbank_BTM: Tensor, config: ASTConfig) -> None:
    shape = tuple(fbank_BTM.shape)
    if len(shape) != 3 or shape[1] < config.patch_time or shape[2] != config.num_mel_bins:
        raise InputError(
            f"Expected an fbank of shape (batch, {config.patch_time} or more frames, {config.num_mel_bins} bins), "
            f"but found {shape}. Pad it, or compute it with the model's number of mel bins."
        )


def adapt_positions(positions_1ND: Tensor, source: Grid, target: Grid) -> Tensor:
    """Adapt positions from one grid to another like the official AST, first in time and then in frequency.

    An axis that shrinks is cropped to its centre, and an axis that grows is interpolated. The extra tokens' positions
    do not change.
    """
    if source == target:
        return positions_1ND
    num_patches = source[0] * source[1]
    extra_1ED, patches_1PD = positions_1ND.split([positions_1ND.shape[1] - num_patches, num_patches], dim=1)
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


def fixed_positions(config: ASTConfig, grid: Grid) -> Tensor:
    """Return EAT's positions (1, N, D), which encode the row and column of each patch and are 0 for extra tokens.

    A patch's position does not depend on the size of the grid, so the patches of a short clip have the same positions
    as in a long clip.
    """
    num_rates = config.width // 4
    rates = 1.0 / 10_000.0 ** (torch.arange(num_rates) / num_rates)
    freq_FR, time_TR = (torch.arange(count)[:, None] * rates for count in grid)
    freq_FD, time_TD = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in (freq_FR, time_TR))
    num_freq, num_time = grid
    patches_FTD = torch.cat([freq_FD[:, None].expand(-1, num_time, -1), time_TD[None].expand(num_freq, -1, -1)], dim=2)
    extra_ED = torch.zeros(config.num_extra_tokens, config.width)
    return torch.cat([extra_ED, patches_FTD.flatten(0, 1)])[None]


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
