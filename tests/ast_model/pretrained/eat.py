"""Weights of a small EAT under fairseq's names. Each tensor is seeded by its name, so any code can draw the same."""

import zlib

import numpy as np
import torch
from torch import Tensor

WIDTH, DEPTH, NUM_CLASSES, NUM_FRAMES = 64, 2, 35, 128
BODY = "model.modality_encoders.IMAGE."


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw a tensor. Weights of LayerNorms are close to 1."""
    values = 0.1 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(values + (len(shape) == 1 and name.endswith("weight"))).float()


def draw_fbank() -> Tensor:
    return draw("fbank", (2, NUM_FRAMES, 128)) * 5


def draw_checkpoint() -> dict[str, Tensor]:
    """Draw the tensors of a fine-tuned checkpoint."""
    linear = {f"{BODY}local_encoder.proj": (WIDTH, 1, 16, 16), "head": (NUM_CLASSES, WIDTH)}
    norms = [f"{BODY}context_encoder.norm", "fc_norm"]
    for number in range(DEPTH):
        block = f"model.blocks.{number}"
        norms += [f"{block}.norm1", f"{block}.norm2"]
        linear |= {f"{block}.attn.qkv": (3 * WIDTH, WIDTH), f"{block}.attn.proj": (WIDTH, WIDTH)}
        linear |= {f"{block}.mlp.fc1": (4 * WIDTH, WIDTH), f"{block}.mlp.fc2": (WIDTH, 4 * WIDTH)}
    shapes = {f"{BODY}extra_tokens": (1, 1, WIDTH)}
    for name, shape in {**linear, **{name: (WIDTH,) for name in norms}}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: draw(name, shape) for name, shape in shapes.items()}
