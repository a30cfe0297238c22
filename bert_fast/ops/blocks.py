"""The two halves of an encoder layer, each as one node of autograd: training's way where nothing looks inside.

What one node gains over the ops in a row: a residual's two gradients meet in the product that makes the second of them
(it adds to the first in place, which only their owner may do) instead of in a pass over both of its own, and the host
makes one node where it made five.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast.ops.attention_joined import _attention_joined, _attention_joined_grad
from bert_fast.ops.dropout_add_layer_norm import _dropout_add_grad, _dropout_add_layer_norm
from bert_fast.ops.gelu import _bias_gelu, _bias_gelu_grad
from bert_fast.ops.library import autocast_dtype, below_autograd


class Closing(NamedTuple):
    """What closes a block beside its weights, ``LN(x + dropout(branch))``: LayerNorm's eps, dropout's p and site."""

    eps: float
    p: float
    site: int


class Attending(NamedTuple):
    """An attention call's numbers: as :func:`bert_fast.ops.attention` names them, and how many heads there are."""

    heads: int
    max_seqlen: int
    scale: float
    p: float
    site: int


def attention_block(
    x: Tensor,
    weights: tuple[Tensor, ...],
    batch: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    seed: Tensor | None,
    attending: Attending,
    closing: Closing,
) -> Tensor:
    """``LN(x + dropout(attention(x) @ w_out.T + b_out))``, by the kernels alone.

    Args:
        x: ``[T, H]``, float32, float16 or bfloat16.
        weights: of query, key, value and output, each followed by its bias, then LayerNorm's two; all in x's dtype.
        batch: ``cu_seqlens``, the schedule of ``attention_plan``, and the additive bias (which gets no gradient) and
            key mask, or None.
        seed: int64 ``[1]``; needed where a p is not 0.

    Returns:
        ``[T, H]``.
    """
    return _AttentionBlock.apply(x, *weights, *batch, seed, attending, closing)


def feed_forward_block(
    x: Tensor, weights: tuple[Tensor, ...], seed: Tensor | None, approximate: str, closing: Closing
) -> Tensor:
    """``LN(x + dropout(gelu(x @ w_in.T + b_in) @ w_out.T + b_out))``, by the kernels alone.

    Args:
        x: ``[T, H]``, float32, float16 or bfloat16.
        weights: of the two layers, each followed by its bias, then LayerNorm's two; all in x's dtype.
        seed: int64 ``[1]``; needed where p is not 0.
        approximate: GELU's, "none" or "tanh".

    Returns:
        ``[T, H]``.
    """
    return _FeedForwardBlock.apply(x, *weights, seed, approximate, closing)


def _close(branch: Tensor, x: Tensor, weight: Tensor, bias: Tensor, x_bias: Tensor, seed: Tensor | None, c: Closing):
    seed = seed if c.p > 0 else None
    return below_autograd(_dropout_add_layer_norm, branch, x, weight, bias, x_bias, seed, *c, None, True)


def _close_backward(dy: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, seed: Tensor | None, c: Closing):
    """Gradients of x, the branch, LayerNorm's weight and bias, and the branch's bias; the first two may be one."""
    seed = seed if c.p > 0 else None
    dx, *rest = _dropout_add_grad(dy, z, mean, rstd, weight, seed, c.p, c.site, z.dtype, z.dtype, True)
    return (dx, dx, *rest) if len(rest) == 3 else (dx, *rest)


def _outside_autocast(backward: Callable) -> Callable:
    """A backward() called inside ``torch.autocast`` must not turn these products into another dtype's."""

    @functools.wraps(backward)
    def run(ctx: Any, dy: Tensor | None) -> tuple:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        if autocast_dtype(dy.device) is None:
            return backward(ctx, dy)
        with torch.autocast(dy.device.type, enabled=False):
            return backward(ctx, dy)

    return run


def _bias_gradients(dqkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the biases of query, key and value from ``dqkv [T, 3, N, D]``: ``[N * D]`` each.

    A key bias adds the same to all scores of a row, and softmax does not see that: its gradient is 0, of which a sum
    over dk would be the rounding, and a third of the bytes. What is left reads 201 MB for 65,536 tokens of a base
    model, 47 us at 4.3 TB/s, of some 3.5 ms that a layer's training takes. Sums made in attention's backward would
    leave [tiles, 2, N * D] in float32, 3 to 9 MB to write and read, and save at most 40 us less what they cost there:
    1%, for kernels whose registers are all in use.
    """
    dq, dv = dqkv[:, ::2].sum(0).flatten(1)
    return dq, torch.zeros_like(dq), dv


class _FeedForwardBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, w_in, b_in, w_out, b_out, weight, bias, seed, approximate, closing) -> Tensor:
        before = x @ w_in.t()
        inner = below_autograd(_bias_gelu, before, b_in, approximate)
        y, *saved = _close(inner @ w_out.t(), x, weight, bias, b_out, seed, closing)
        ctx.save_for_backward(x, before, inner, *saved, w_in, b_in, w_out, weight, seed)
        ctx.set_materialize_grads(False)
        ctx.approximate, ctx.closing = approximate, closing
        return y

    @staticmethod
    @once_differentiable
    @_outside_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple:
        x, before, inner, z, mean, rstd, w_in, b_in, w_out, weight, seed = ctx.saved_tensors
        need_x, need_in, _, need_out, *_ = ctx.needs_input_grad
        dx, dout, dweight, dbias, db_out = _close_backward(dy, z, mean, rstd, weight, seed, ctx.closing)
        dw_out = dout.t() @ inner if need_out else None
        dbefore, db_in = _bias_gelu_grad(dout @ w_out, before, b_in, ctx.approximate)
        dw_in = dbefore.t() @ x if need_in else None
        # dout, where it is the same tensor as dx, has been read: from here on dx is only the sum to be.
        dx = dx.addmm_(dbefore, w_in) if need_x else None
        return dx, dw_in, db_in, dw_out, db_out, dweight, dbias, None, None, None


class _AttentionBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x, w_q, b_q, w_k, b_k, w_v, b_v, w_out, b_out, weight, bias,
        cu_seqlens, schedule, scores, key_mask, seed, attending, closing,
    ) -> Tensor:  # fmt: skip
        heads, max_seqlen, scale, p, site = attending
        qkv = F.linear(x, torch.cat([w_q, w_k, w_v]), torch.cat([b_q, b_k, b_v]))
        qkv = qkv.view(x.shape[0], 3, heads, w_q.shape[0] // heads)
        masks = (scores, key_mask, seed if p > 0 else None)
        out, lse = below_autograd(_attention_joined, qkv, cu_seqlens, max_seqlen, schedule, *masks, scale, p, site)
        y, *saved = _close(out.flatten(1) @ w_out.t(), x, weight, bias, b_out, seed, closing)
        batch = (cu_seqlens, schedule, scores, key_mask, seed)
        ctx.save_for_backward(x, qkv, out, lse, *saved, w_q, w_k, w_v, w_out, weight, *batch)
        ctx.set_materialize_grads(False)
        ctx.attending, ctx.closing = attending, closing
        return y

    @staticmethod
    @once_differentiable
    @_outside_autocast
    def backward(ctx: Any, dy: Tensor) -> tuple:
        x, qkv, out, lse, z, mean, rstd, w_q, w_k, w_v, w_out, weight, *batch = ctx.saved_tensors
        cu_seqlens, schedule, scores, key_mask, seed = batch
        _, max_seqlen, scale, p, site = ctx.attending
        need = ctx.needs_input_grad
        dx, dout, dweight, dbias, db_out = _close_backward(dy, z, mean, rstd, weight, seed, ctx.closing)
        dw_out = dout.t() @ out.flatten(1) if need[7] else None
        masks = (scores, key_mask, seed if p > 0 else None)
        dattended = (dout @ w_out).view(out.shape)
        (dqkv,) = _attention_joined_grad(
            dattended, qkv, out, lse, cu_seqlens, max_seqlen, schedule, *masks, scale, p, site, False
        )
        db = _bias_gradients(dqkv) if any(need[i] for i in (2, 4, 6)) else (None,) * 3
        dqkv = dqkv.flatten(1)
        dw = (dqkv.t() @ x).chunk(3) if any(need[i] for i in (1, 3, 5)) else [None] * 3
        # The weights are joined once more rather than kept in between, a copy of a few MB against as many held a layer.
        dx = dx.addmm_(dqkv, torch.cat([w_q, w_k, w_v])) if need[0] else None
        ours = (g for pair in zip(dw, db, strict=True) for g in pair)
        return dx, *ours, dw_out, db_out, dweight, dbias, *[None] * 7
