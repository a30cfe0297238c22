"""Rows of a packed batch to the padded slots of its groups and back, with gradients that are gathered, never scattered.

A row stands in one slot that counts. The other slots are padding: no query sees them, what they see is dropped, and so
their gradients are 0. The gradient of spreading rows to slots is therefore one gather of slots, where autograd would
add all slots into zeros; and that of gathering slots, one gather of rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Slots:
    """Where rows stand in slots.

    Args:
        rows: int64 ``[slots]``, each slot's row; a padding slot has any of its sequence.
        counts: bool ``[slots]``, False for padding.
        slot_of_row: int64 ``[T]``.
    """

    def __init__(self, rows: Tensor, counts: Tensor, slot_of_row: Tensor) -> None:
        self.rows, self.counts, self.slot_of_row = rows, counts, slot_of_row

    def spread(self, x: Tensor) -> Tensor:
        """``[T, ...]`` -> ``[slots, ...]``."""
        return _Gather.apply(x, self.rows, self.slot_of_row, None)

    def collect(self, x: Tensor) -> Tensor:
        """``[slots, ...]`` -> ``[T, ...]``."""
        return _Gather.apply(x, self.slot_of_row, self.rows, self.counts)


class _Gather(torch.autograd.Function):
    """``x[places]``; its gradient is ``gradient[back]``, 0 where ``counts`` is False."""

    @staticmethod
    def forward(x: Tensor, places: Tensor, back: Tensor, counts: Tensor | None) -> Tensor:
        return x.index_select(0, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.places, ctx.back, ctx.counts = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        given = gradient.index_select(0, ctx.back)
        if ctx.counts is not None:
            given = given.masked_fill(~ctx.counts.view(-1, *[1] * (given.dim() - 1)), 0)
        return given, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: None) -> Tensor:
        return tangent.index_select(0, ctx.places)


def attend_with_dropout(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float | None, p: float) -> Tensor:
    """Attention ``[b, N, L, D]`` with dropout of its weights, where every query sees a key.

    PyTorch's own, with dropout on a CPU, computes the same, and passes three more times over all weights for queries
    that see none.
    """
    b, heads, length, width = q.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    if seen is None:
        scores = torch.bmm(flat[0] * scale, flat[1].mT)
    else:
        hidden = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, -math.inf)
        hidden = hidden.expand(b, heads, length, length).reshape(b * heads, length, length)
        scores = torch.baddbmm(hidden, flat[0], flat[1].mT, alpha=scale)
    weights = F.dropout(torch.softmax(scores, -1), p)
    return torch.bmm(weights, flat[2]).view(b, heads, length, width)
