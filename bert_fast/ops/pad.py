"""Rows out of the padded world and back: a gather and a scatter, each the other's gradient.

With P places, T of them kept, in rows read and written: PyTorch scatters in P (zeros) + 2P (their copy) + 2T, and sums
a gather's gradient in P + 3T with atomics. The kernel writes every place once, row or zeros: P + T, in a fixed order.
"""

import math
from typing import Any

import torch
from torch import Tensor

from bert_fast import backend, extension
from bert_fast.ops import library
from bert_fast.ops.library import below_autograd, define


def unpad_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Gather the rows of a padded ``x [B, S, ...]``, of any dtype, that ``indices [T]`` names: ``[T, ...]``.

    ``indices`` are int64, ascending and distinct, as :func:`bert_fast.ops.unpad` gives them.
    """
    rows = x.flatten(0, 1)
    # Without a gradient PyTorch's gather is the one pass that it can be.
    if torch.is_grad_enabled() and x.requires_grad and _runs("unpad_rows", x, indices):
        return _gather(rows, indices)
    return rows.index_select(0, indices)


def pad_rows(x: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Scatter packed rows ``x [T, ...]`` to their places in ``[B, S, ...]``; every other place is 0.

    ``indices [T]`` are int64, ascending and distinct, as :func:`bert_fast.ops.unpad` gives them.
    """
    if _runs("pad_rows", x, indices):
        return _scatter(x, indices, batch * seqlen).unflatten(0, (batch, seqlen))
    padded = x.new_zeros(batch * seqlen, *x.shape[1:])
    return padded.index_copy(0, indices, x).unflatten(0, (batch, seqlen))


def _runs(op: str, x: Tensor, indices: Tensor) -> bool:
    against = []
    if indices.dtype != torch.int64 or indices.device != x.device:
        against.append(f"the indices are {indices.dtype} on {indices.device}, not int64 on {x.device}")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x):
        against.append("the rows are inside torch.func")
    return backend.runs(op, "cuda", x.device, tuple(against))


def _row_bytes(x: Tensor) -> int:
    return math.prod(x.shape[1:]) * x.element_size()


def _gather_forward(x, indices):
    x, indices = x.contiguous(), indices.contiguous()
    out = _gather_fake(x, indices)
    sizes = (out.data_ptr(), _row_bytes(x))
    extension.required().gather_rows_cuda(
        x.data_ptr(), x.shape[0], indices.data_ptr(), indices.shape[0], *sizes, *library.launch_on(x)
    )
    return out


def _gather_fake(x, indices):
    return x.new_empty(indices.shape[0], *x.shape[1:])


def _scatter_forward(x, indices, places):
    x, indices = x.contiguous(), indices.contiguous()
    out = _scatter_fake(x, indices, places)
    sizes = (out.data_ptr(), places, _row_bytes(out))
    extension.required().scatter_rows_cuda(
        x.data_ptr(), indices.data_ptr(), indices.shape[0], *sizes, *library.launch_on(x)
    )
    return out


def _scatter_fake(x, indices, places):
    return x.new_empty(places, *x.shape[1:])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.places = x.shape[0]
        return below_autograd(_gather, x, indices)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:  # differentiable: the op has its own gradient
        return _scatter(dy, *ctx.saved_tensors, ctx.places), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, places: int) -> Tensor:
        ctx.save_for_backward(indices)
        return below_autograd(_scatter, x, indices, places)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:
        return _gather(dy, *ctx.saved_tensors), None, None


_gather = define("gather_rows(Tensor x, Tensor indices) -> Tensor", _gather_forward, _gather_fake, _Gather)
_scatter = define(
    "scatter_rows(Tensor x, Tensor indices, SymInt places) -> Tensor", _scatter_forward, _scatter_fake, _Scatter
)
