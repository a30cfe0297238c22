"""Losses over rows of logits."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy over the rows whose label is not ``ignore_index``; 0 when there is none.

    Args:
        logits: ``[rows, classes]``, any floating dtype.
        labels: integers ``[rows]``.

    Returns:
        a scalar in at least float32: a float16 sum over many rows could overflow. PyTorch's mean over no rows would be
        NaN and spoil a training step that merely had nothing to learn.
    """
    labels = labels.long()
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    total = losses.sum(dtype=torch.promote_types(losses.dtype, torch.float32))
    return total / (labels != ignore_index).sum().clamp(min=1)
