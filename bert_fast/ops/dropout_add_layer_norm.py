"""dropout_add_layer_norm: what closes both halves of an encoder layer, in one pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import reference
from bert_fast.ops import stand_ins
from bert_fast.ops.library import below_autograd, define
from bert_fast.ops.rows import norm_dtype, runs_on_rows, statistics_like


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    x_bias: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``LN(residual + dropout(x + x_bias))``.

    Args:
        x, residual: ``[T, H]``; their dtypes may differ.
        weight, bias, x_bias: ``[H]``.
        eps: LayerNorm's.
        p, seed, site: dropout. The kernel needs ``seed``, an int64 tensor of one element on the same device; without
            it, and on the reference path without it, PyTorch's generator draws the mask.

    Returns:
        ``[T, H]`` in the dtype that x and residual promote to; float32 under autocast on a GPU, as eager LayerNorm.
    """
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias, "x_bias": x_bias}
    if (p == 0 or seed is not None) and runs_on_rows("dropout_add_layer_norm", **tensors):
        save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors.values())
        arguments = (x, residual, weight, bias, x_bias, seed if p > 0 else None, eps, p, site)
        return _dropout_add_layer_norm(*arguments, norm_dtype(x), save)[0]
    return reference.dropout_add_layer_norm(x, residual, weight, bias, eps, x_bias=x_bias, p=p, seed=seed, site=site)


def _dropout_add_forward(x, residual, weight, bias, x_bias, seed, eps, p, site, out_dtype, save):
    from bert_fast.kernels.layer_norm import dropout_add_layer_norm_forward

    dropout = {"p": p, "seed": seed, "site": site}
    y, z, mean, rstd = dropout_add_layer_norm_forward(
        x, residual, weight, bias, eps, x_bias=x_bias, out_dtype=out_dtype, save=save, **dropout
    )
    # An op's results are tensors; nothing saved is three empty ones.
    return (y, z, mean, rstd) if save else (y, *(x.new_empty(0) for _ in range(3)))


def _dropout_add_fake(x, residual, weight, bias, x_bias, seed, eps, p, site, out_dtype, save):
    dtype = torch.promote_types(x.dtype, residual.dtype)
    y = x.new_empty(x.shape, dtype=out_dtype or dtype)
    if not save:
        return y, *(x.new_empty(0) for _ in range(3))
    return y, x.new_empty(x.shape, dtype=dtype), *statistics_like(x)


def _dropout_add_backward(dy, z, mean, rstd, weight, seed, p, site, x_dtype, residual_dtype, x_bias_grad):
    from bert_fast.kernels.layer_norm import dropout_add_layer_norm_backward

    dx, dresidual, *sums = dropout_add_layer_norm_backward(
        dy,
        z,
        mean,
        rstd,
        weight,
        p=p,
        seed=seed,
        site=site,
        x_dtype=x_dtype,
        residual_dtype=residual_dtype,
        x_bias_grad=x_bias_grad,
    )
    # An op may not return one tensor twice: where dx and dresidual are the same, the caller repeats it.
    grads = [dresidual] if dx is dresidual else [dresidual, dx]
    return grads + [s for s in sums if s is not None]


def _dropout_add_backward_fake(dy, z, mean, rstd, weight, seed, p, site, x_dtype, residual_dtype, x_bias_grad):
    shared = p == 0 and x_dtype == residual_dtype
    grads = [z.new_empty(z.shape, dtype=residual_dtype)]
    if not shared:
        grads.append(z.new_empty(z.shape, dtype=x_dtype))
    return grads + [weight.new_empty(weight.shape) for _ in range(3 if x_bias_grad else 2)]


class _DropoutAddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, residual, weight, bias, x_bias, seed, eps, p, site, out_dtype, save) -> tuple:
        arguments = (x, residual, weight, bias, x_bias, seed, eps, p, site, out_dtype, save)
        y, z, mean, rstd = below_autograd(_dropout_add_layer_norm, *arguments)
        ctx.save_for_backward(z, mean, rstd, weight, seed)
        ctx.mark_non_differentiable(z, mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.dropout = (p, site)
        ctx.dtypes = (x.dtype, residual.dtype)
        ctx.x_bias = x_bias is not None
        return y, z, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple:
        if dy is None:
            return (None,) * 11
        z, mean, rstd, weight, seed = ctx.saved_tensors
        dresidual, *rest = _dropout_add_grad(dy, z, mean, rstd, weight, seed, *ctx.dropout, *ctx.dtypes, ctx.x_bias)
        shared = len(rest) == 2 + ctx.x_bias
        dx = dresidual if shared else rest.pop(0)
        dweight, dbias, *dx_bias = rest
        return dx, dresidual, dweight, dbias, *(dx_bias or [None]), *[None] * 6


_dropout_add_layer_norm = define(
    "dropout_add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor? x_bias, Tensor? seed, "
    "float eps, float p, int site, ScalarType? out_dtype, bool save) -> (Tensor, Tensor, Tensor, Tensor)",
    _dropout_add_forward,
    _dropout_add_fake,
    _DropoutAddLayerNorm,
    instead=stand_ins.dropout_add_layer_norm,
)
_dropout_add_grad = define(
    "dropout_add_layer_norm_backward(Tensor dy, Tensor z, Tensor mean, Tensor rstd, Tensor weight, Tensor? seed, "
    "float p, int site, ScalarType x_dtype, ScalarType residual_dtype, bool x_bias_grad) -> Tensor[]",
    _dropout_add_backward,
    _dropout_add_backward_fake,
    instead=stand_ins.dropout_add_layer_norm_backward,
    of="dropout_add_layer_norm",
)
