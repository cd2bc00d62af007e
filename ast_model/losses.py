"""The two losses, and the scores that models trained with them give."""

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ast_model.config import Loss


def clip_losses(logits_BC: Tensor, targets_BC: Tensor, loss: Loss) -> Tensor:
    """Return each clip's loss (B,): mean over classes of the binary cross-entropy, or cross-entropy (soft targets)."""
    if loss == "bce":
        return nnf.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").mean(dim=1)
    return nnf.cross_entropy(logits_BC, targets_BC, reduction="none")


def scores_from_logits(logits_BC: Tensor, loss: Loss) -> Tensor:
    """Turn logits into scores between 0 and 1 (float32)."""
    return logits_BC.float().softmax(dim=1) if loss == "ce" else torch.sigmoid(logits_BC.float())
