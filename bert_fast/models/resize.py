"""Embedding tables and biases with another number of rows."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def resized_embedding(old: nn.Module, rows: int, std: float | None) -> nn.Embedding:
    """An embedding of ``rows`` rows that begins with ``old.weight``'s.

    ``std``: standard deviation of the new rows, drawn around 0; None makes each of them the mean of the old rows.
    """
    weight = old.weight
    padding_idx = getattr(old, "padding_idx", None)
    padding_idx = None if padding_idx is None or padding_idx >= rows else padding_idx
    new = nn.Embedding(rows, weight.shape[1], padding_idx=padding_idx, device=weight.device, dtype=weight.dtype)
    kept = min(rows, weight.shape[0])
    new.weight[:kept] = weight[:kept]
    if std is None:
        new.weight[kept:] = weight.float().mean(0).to(weight.dtype)
    else:
        new.weight[kept:].normal_(0.0, std)
    new.weight.requires_grad_(weight.requires_grad)
    return new.train(old.training)


@torch.no_grad()
def resized_bias(old: Tensor | None, rows: int) -> nn.Parameter | None:
    """A bias of ``rows`` elements that begins with ``old``'s; the rest is 0."""
    if old is None:
        return None
    new = old.new_zeros(rows)
    kept = min(rows, old.shape[0])
    new[:kept] = old[:kept]
    return nn.Parameter(new, requires_grad=old.requires_grad)
