"""Time the attention kernels of this machine's device at the shape of AST-base.

    python -m bench.attention

Prints a JSON line per supported kernel: forward and backward of one block's attention, relative to the slowest kernel.
"""

import torch

from ast_model.config import ASTConfig
from ast_model.training.device import KERNELS, seconds_of_attention
from bench.lines import print_line

NUM_PRODUCTS = 7
"""Matrix products: two in the forward and five in the backward, which recomputes the attention weights."""


def main() -> None:
    has_gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if has_gpu else "cpu"), torch.bfloat16 if has_gpu else torch.float32
    model, num_clips = ASTConfig.base(), 32 if has_gpu else 1
    shape = (num_clips, model.num_heads, model.num_tokens, model.width // model.num_heads)
    num_flops = NUM_PRODUCTS * 2 * num_clips * model.num_tokens**2 * model.width
    timed = {name: seconds_of_attention(name, shape, dtype, device) for name in KERNELS}
    found = {name: seconds for name, seconds in timed.items() if seconds is not None}
    slowest = max(found, key=lambda name: found[name])
    for name, seconds in found.items():
        peer = (f"attention, {slowest}", num_clips / found[slowest]) if name != slowest else None
        shown = {"tflops": num_flops / seconds / 1e12, "device": device.type, "batch_size": num_clips}
        print_line(f"attention, {name}", "clips/s", num_clips / seconds, peer, **shown)


if __name__ == "__main__":
    main()
