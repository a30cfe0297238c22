"""Launches of the row-wise kernels (LayerNorm, GELU, softmax) for compiled.py, at the widths that BERTs have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

T = 4096


def cases(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each op's forward and backward. "autocast": x in dtype, everything else in float32."""
    for hidden in (768, 1024, 312, 8192):
        yield f"dropout_add_layer_norm H={hidden}", functools.partial(_layer_norm, dtype, hidden, p=0.1)
    yield "dropout_add_layer_norm H=768 p=0", functools.partial(_layer_norm, dtype, 768, p=0.0)
    yield "dropout_add_layer_norm H=768 no bias", functools.partial(_layer_norm, dtype, 768, p=0.0, x_bias=False)
    if dtype != torch.float32:
        yield "dropout_add_layer_norm H=768 autocast", functools.partial(_autocast_layer_norm, dtype, 768)
    yield "layer_norm H=768", functools.partial(_plain_layer_norm, dtype, 768)
    for approximate in ("none", "tanh"):
        yield f"gelu_layer_norm H=768 {approximate}", functools.partial(_gelu_layer_norm, dtype, 768, approximate)
        yield f"bias_gelu I=3072 {approximate}", functools.partial(_bias_gelu, dtype, 3072, approximate)
    yield "bias_gelu I=1248", functools.partial(_bias_gelu, dtype, 1248, "none")
    yield "bias_gelu I=3072 no bias", functools.partial(_bias_gelu, dtype, 3072, "none", bias=False)
    for keys in (128, 500, 16384, 20000):
        yield f"softmax K={keys}", functools.partial(_softmax, dtype, keys, p=0.0)
    yield "softmax K=512 dropout", functools.partial(_softmax, dtype, 512, p=0.1)


def _layer_norm(dtype, hidden, p, x_bias=True, x_dtype=None):
    from bert_fast.kernels import layer_norm as ln

    x = torch.zeros(T, hidden, dtype=x_dtype or dtype)
    residual, vector, statistics = torch.zeros(T, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype), torch.zeros(T)
    dropout = {"p": p, "seed": torch.zeros(1, dtype=torch.int64), "site": 3}
    for save in (True, False):
        bias = vector if x_bias else None
        ln.dropout_add_layer_norm_forward(x, residual, vector, vector, 1e-12, x_bias=bias, save=save, **dropout)
    ln.dropout_add_layer_norm_backward(
        residual, residual, statistics, statistics, vector, x_dtype=x.dtype, x_bias_grad=x_bias, **dropout
    )


def _autocast_layer_norm(dtype, hidden):
    _layer_norm(torch.float32, hidden, p=0.1, x_dtype=dtype)


def _plain_layer_norm(dtype, hidden):
    from bert_fast.kernels import layer_norm as ln

    x, vector = torch.zeros(T, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    y, mean, rstd = ln.layer_norm_forward(x, vector, vector, 1e-12)
    ln.layer_norm_backward(y, x, mean, rstd, vector)


def _gelu_layer_norm(dtype, hidden, approximate):
    from bert_fast.kernels import gelu

    x, vector = torch.zeros(T, hidden, dtype=dtype), torch.zeros(hidden, dtype=dtype)
    y, mean, rstd = gelu.gelu_layer_norm_forward(x, vector, vector, vector, 1e-12, approximate)
    gelu.gelu_layer_norm_backward(y, x, vector, mean, rstd, vector, approximate)


def _bias_gelu(dtype, width, approximate, bias=True):
    from bert_fast.kernels import gelu

    x = torch.zeros(T, width, dtype=dtype)
    vector = torch.zeros(width, dtype=dtype) if bias else None
    gelu.bias_gelu_forward(x, vector, approximate)
    gelu.bias_gelu_backward(x, x, vector, approximate)


def _softmax(dtype, keys, p):
    from bert_fast.kernels import softmax

    scores, mask = torch.zeros(2, 4, 8, keys, dtype=dtype), torch.zeros(2, 1, 1, keys, dtype=dtype)
    dropout = {"p": p, "seed": torch.zeros(1, dtype=torch.int64), "site": 3}
    dropped, probs = softmax.scaled_masked_softmax_forward(scores, mask, 0.125, **dropout)
    softmax.scaled_masked_softmax_backward(dropped, probs, 0.125, **dropout)
