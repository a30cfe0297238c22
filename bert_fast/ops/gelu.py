"""bias_gelu, and gelu_layer_norm: the masked-LM head's transform."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import reference
from bert_fast.ops import stand_ins
from bert_fast.ops.library import below_autograd, define
from bert_fast.ops.rows import norm_dtype, runs_on_rows, statistics_like


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str = "none") -> Tensor:
    """``gelu(x + bias)`` for ``x [T, I]`` and ``bias [I]``; see :func:`bert_fast.reference.bias_gelu`."""
    if runs_on_rows("bias_gelu", limit=None, x=x, bias=bias):
        return _bias_gelu(x, bias, approximate)
    return reference.bias_gelu(x, bias, approximate)


def gelu_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    approximate: str = "none",
    *,
    x_bias: Tensor | None = None,
) -> Tensor:
    """``LN(gelu(x + x_bias))`` for ``x [T, H]``; see :func:`bert_fast.reference.gelu_layer_norm`."""
    if runs_on_rows("gelu_layer_norm", x=x, weight=weight, bias=bias, x_bias=x_bias):
        return _gelu_layer_norm(x, x_bias, weight, bias, eps, approximate, norm_dtype(x))[0]
    return reference.gelu_layer_norm(x, x_bias, weight, bias, eps, approximate)


def _bias_gelu_forward(x, bias, approximate):
    from bert_fast.kernels.gelu import bias_gelu_forward

    return bias_gelu_forward(x, bias, approximate)


def _bias_gelu_fake(x, bias, approximate):
    return x.new_empty(x.shape)


def _bias_gelu_backward(dy, x, bias, approximate):
    from bert_fast.kernels.gelu import bias_gelu_backward

    return [grad for grad in bias_gelu_backward(dy, x, bias, approximate) if grad is not None]


def _bias_gelu_backward_fake(dy, x, bias, approximate):
    return [x.new_empty(x.shape)] + ([] if bias is None else [bias.new_empty(bias.shape)])


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.set_materialize_grads(False)
        ctx.approximate = approximate
        return below_autograd(_bias_gelu, x, bias, approximate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None) -> tuple:
        if dy is None:
            return (None,) * 3
        dx, *dbias = _bias_gelu_grad(dy, *ctx.saved_tensors, ctx.approximate)
        return dx, *(dbias or [None]), None


_bias_gelu = define(
    "bias_gelu(Tensor x, Tensor? bias, str approximate) -> Tensor",
    _bias_gelu_forward,
    _bias_gelu_fake,
    _BiasGelu,
    instead=stand_ins.bias_gelu,
)
_bias_gelu_grad = define(
    "bias_gelu_backward(Tensor dy, Tensor x, Tensor? bias, str approximate) -> Tensor[]",
    _bias_gelu_backward,
    _bias_gelu_backward_fake,
    instead=stand_ins.bias_gelu_backward,
    of="bias_gelu",
)


def _gelu_layer_norm_forward(x, x_bias, weight, bias, eps, approximate, out_dtype):
    from bert_fast.kernels.gelu import gelu_layer_norm_forward

    return gelu_layer_norm_forward(x, x_bias, weight, bias, eps, approximate, out_dtype=out_dtype)


def _gelu_layer_norm_fake(x, x_bias, weight, bias, eps, approximate, out_dtype):
    return x.new_empty(x.shape, dtype=out_dtype or x.dtype), *statistics_like(x)


def _gelu_layer_norm_backward(dy, x, x_bias, mean, rstd, weight, approximate):
    from bert_fast.kernels.gelu import gelu_layer_norm_backward

    dx, dx_bias, dweight, dbias = gelu_layer_norm_backward(dy, x, x_bias, mean, rstd, weight, approximate)
    return [dx, dweight, dbias] + ([] if dx_bias is None else [dx_bias])


def _gelu_layer_norm_backward_fake(dy, x, x_bias, mean, rstd, weight, approximate):
    return [x.new_empty(x.shape), *(weight.new_empty(weight.shape) for _ in range(2 if x_bias is None else 3))]


class _GeluLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, x_bias, weight, bias, eps, approximate, out_dtype) -> tuple:
        y, mean, rstd = below_autograd(_gelu_layer_norm, x, x_bias, weight, bias, eps, approximate, out_dtype)
        ctx.save_for_backward(x, x_bias, mean, rstd, weight)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.approximate = approximate
        return y, mean, rstd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple:
        if dy is None:
            return (None,) * 7
        dx, dweight, dbias, *dx_bias = _gelu_layer_norm_grad(dy, *ctx.saved_tensors, ctx.approximate)
        return dx, *(dx_bias or [None]), dweight, dbias, None, None, None


_gelu_layer_norm = define(
    "gelu_layer_norm(Tensor x, Tensor? x_bias, Tensor weight, Tensor bias, float eps, str approximate, "
    "ScalarType? out_dtype) -> (Tensor, Tensor, Tensor)",
    _gelu_layer_norm_forward,
    _gelu_layer_norm_fake,
    _GeluLayerNorm,
    instead=stand_ins.gelu_layer_norm,
)
_gelu_layer_norm_grad = define(
    "gelu_layer_norm_backward(Tensor dy, Tensor x, Tensor? x_bias, Tensor mean, Tensor rstd, Tensor weight, "
    "str approximate) -> Tensor[]",
    _gelu_layer_norm_backward,
    _gelu_layer_norm_backward_fake,
    instead=stand_ins.gelu_layer_norm_backward,
    of="gelu_layer_norm",
)
