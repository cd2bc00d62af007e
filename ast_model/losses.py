"""The two training losses and their conversions of logits to scores."""

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ast_model.config import Loss


def clip_losses(logits_BC: Tensor, targets_BC: Tensor, loss: Loss) -> Tensor:
    """Return each clip's loss (B,): mean binary cross-entropy over classes, or cross-entropy with soft targets."""
    if loss == "bce":
        return nnf.binary_cross_entropy_with_logits(logits_BC, targets_BC, reduction="none").mean(dim=1)
    return nnf.cross_entropy(logits_BC, targets_BC, reduction="none")


def scores_from_logits(logits_BC: Tensor, loss: Loss) -> Tensor:
    """Convert logits to float32 scores between 0 and 1."""
    return logits_BC.float().softmax(dim=1) if loss == "ce" else torch.sigmoid(logits_BC.float())
