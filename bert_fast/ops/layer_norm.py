"""layer_norm: LayerNorm alone."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import reference
from bert_fast.ops import stand_ins
from bert_fast.ops.library import below_autograd, define
from bert_fast.ops.rows import norm_dtype, runs_on_rows, statistics_like


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension of ``x [T, H]``; see :func:`bert_fast.reference.layer_norm`."""
    given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    if runs_on_rows("layer_norm", x=x, **given):
        return _layer_norm(x, weight, torch.zeros_like(weight) if bias is None else bias, eps, norm_dtype(x))[0]
    return reference.layer_norm(x, weight, bias, eps)


def _layer_norm_forward(x, weight, bias, eps, out_dtype):
    from bert_fast.kernels.layer_norm import layer_norm_forward

    return layer_norm_forward(x, weight, bias, eps, out_dtype=out_dtype)


def _layer_norm_fake(x, weight, bias, eps, out_dtype):
    return x.new_empty(x.shape, dtype=out_dtype or x.dtype), *statistics_like(x)


def _layer_norm_backward(dy, x, mean, rstd, weight):
    from bert_fast.kernels.layer_norm import layer_norm_backward

    return layer_norm_backward(dy, x, mean, rstd, weight)


def _layer_norm_backward_fake(dy, x, mean, rstd, weight):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype | None) -> tuple:
        y, mean, rstd = below_autograd(_layer_norm, x, weight, bias, eps, out_dtype)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return y, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple:
        if dy is None:
            return (None,) * 5
        return *_layer_norm_grad(dy, *ctx.saved_tensors), None, None


_layer_norm = define(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType? out_dtype) -> (Tensor, Tensor, Tensor)",
    _layer_norm_forward,
    _layer_norm_fake,
    _LayerNorm,
    instead=stand_ins.layer_norm,
)
_layer_norm_grad = define(
    "layer_norm_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor weight) -> (Tensor, Tensor, Tensor)",
    _layer_norm_backward,
    _layer_norm_backward_fake,
    instead=stand_ins.layer_norm_backward,
    of="layer_norm",
)
