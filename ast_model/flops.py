"""Count a model's operations and parameters from its shape, and list the peak throughput of GPUs."""

from ast_model.config import ASTConfig

FORWARDS_PER_STEP = 3
"""Cost of a training step in forward passes: one forward, and a backward that costs twice as much."""
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense 16-bit peak in operations per second, from data sheets. Keys are parts of GPU names; the first match counts."""


def forward_flops(model: ASTConfig, num_patches: int | None = None) -> int:
    """Count the operations in the matrix products of a forward pass over one sample. A multiply-add counts as two.

    num_patches: patches that remain after patchout; default: all. If the head reads only the extra tokens, the last
    block computes only these, from all tokens.
    """
    num_tokens = (model.num_patches if num_patches is None else num_patches) + model.num_extra_tokens
    width = model.width

    def block(num_out: int) -> int:
        linear = (2 * num_tokens + (2 + 2 * model.mlp_ratio) * num_out) * width**2
        return linear + 2 * num_out * num_tokens * width

    patches = model.num_patches * width * model.patch_freq * model.patch_time
    num_out = model.num_extra_tokens if model.pooling == "extra" else num_tokens
    blocks = (model.depth - 1) * block(num_tokens) + block(num_out)
    return 2 * (blocks + patches + width * model.num_classes)


def training_flops(model: ASTConfig, num_patches: int | None = None) -> int:
    """Count the operations of a forward and backward pass over one sample."""
    return FORWARDS_PER_STEP * forward_flops(model, num_patches)


def count_parameters(model: ASTConfig) -> int:
    """Count the model's trainable values without building it."""
    width, hidden = model.width, model.mlp_ratio * model.width
    norm = 2 * width
    num_positions = 0 if model.fixed_positions else model.num_tokens
    tokens = width * (model.patch_freq * model.patch_time + 1) + (model.num_extra_tokens + num_positions) * width
    attention, mlp = 4 * (width + 1) * width, (width + 1) * hidden + (hidden + 1) * width
    num_norms = 2 * model.depth + model.patch_norm + model.input_norm + model.final_norm + 1
    return tokens + model.depth * (attention + mlp) + num_norms * norm + (width + 1) * model.num_classes
