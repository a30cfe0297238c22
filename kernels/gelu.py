"""Bias + GELU over [T, I], and GELU + LayerNorm over [T, H] (the masked-LM head's transform), forward and backward.

Nothing but the linear's output x is kept: the backward recomputes x + bias and its activation, 6 bytes an element of a
16-bit tensor (read dy and x, write dx) where keeping a second tensor of the size of x would move 8 and hold 2 more.
dbias is summed on the way in two stages, without atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .common import (
    cdiv,
    column_sums,
    contiguous_rows,
    gelu,
    gelu_and_grad,
    multiprocessors,
    next_power_of_2,
    on_device,
    packed_rows,
    require_kernel_dtype,
    row_stride,
)
from .layer_norm import normalise, normalise_backward


@triton.jit(do_not_specialize=["T"])
def _forward_kernel(
    x,
    bias,
    y,
    T,
    x_stride,
    WIDTH: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    PACKED: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
):
    if PACKED:
        x_stride = WIDTH
    # one grid axis: the others end at 65,535 programs
    blocks: tl.constexpr = (WIDTH + COLS - 1) // COLS
    col = tl.program_id(0) % blocks * COLS + tl.arange(0, COLS)
    rows = (tl.program_id(0) // blocks * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
    mask = (rows < T) & (col < WIDTH)[None, :]
    value = tl.load(x + rows * x_stride + col[None, :], mask, 0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + col, col < WIDTH, 0.0).to(tl.float32)[None, :]
    tl.store(y + rows * WIDTH + col[None, :], gelu(value, APPROXIMATE, x.dtype.element_ty != tl.float32), mask)


@triton.jit(do_not_specialize=["T"])
def _backward_kernel(
    dy,
    x,
    bias,
    dx,
    partials,
    T,
    dy_stride,
    x_stride,
    WIDTH: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    PACKED: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (c, p) owns a block of columns and every P-th tile of rows; its dbias goes to partials [1, P, WIDTH]."""
    if PACKED:
        dy_stride = WIDTH
        x_stride = WIDTH
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    if bias is not None:
        shift = tl.load(bias + col, col < WIDTH, 0.0).to(tl.float32)[None, :]
        dbias = tl.zeros([COLS], tl.float32)
    for tile in tl.range(tl.program_id(1), tl.cdiv(T, ROWS), tl.num_programs(1), num_stages=1):
        rows = (tile * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
        mask = (rows < T) & (col < WIDTH)[None, :]
        grad = tl.load(dy + rows * dy_stride + col[None, :], mask, 0.0).to(tl.float32)
        value = tl.load(x + rows * x_stride + col[None, :], mask, 0.0).to(tl.float32)
        if bias is not None:
            value += shift
        _, slope = gelu_and_grad(value, APPROXIMATE, x.dtype.element_ty != tl.float32)
        grad *= slope
        tl.store(dx + rows * WIDTH + col[None, :], grad, mask)
        if bias is not None:
            dbias += tl.sum(grad, 0)
    if bias is not None:
        tl.store(partials + tl.program_id(1) * WIDTH + col, dbias, col < WIDTH)


def _columns(width: int, most: int) -> int:
    """The widest block of at most ``most`` columns that divides the width, if worth a warp; else one that covers it."""
    divisor = width & -width
    return min(divisor, most) if divisor >= 256 else min(next_power_of_2(width), most)


def checked_approximate(approximate: str) -> str:
    if approximate not in ("none", "tanh"):
        raise ValueError(f'approximate must be "none" (erf) or "tanh", not {approximate!r}')
    return approximate


def bias_gelu_forward(x: Tensor, bias: Tensor | None, approximate: str = "none") -> Tensor:
    """``gelu(x + bias)`` for ``x [T, I]``, rows of any stride, and ``bias [I]`` or None: ``[T, I]`` in x's dtype.

    GELU of Hendrycks and Gimpel (2016): ``"none"`` is erf, ``"tanh"`` the formula of Google's BERT.
    """
    _check(x, bias)
    tokens, width = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0:
        return y
    x = contiguous_rows(x)
    chosen = launch.parameters("bias_gelu_forward", launch.architecture())
    cols = _columns(width, chosen["COLS"])
    rows = max(1, chosen["ELEMENTS"] // cols)
    with on_device(x):
        _forward_kernel[(cdiv(width, cols) * cdiv(tokens, rows),)](
            x,
            bias,
            y,
            tokens,
            row_stride(x),
            WIDTH=width,
            APPROXIMATE=checked_approximate(approximate),
            PACKED=packed_rows(x),
            COLS=cols,
            ROWS=rows,
            **launch.launch_options(chosen),
        )
    return y


def bias_gelu_backward(
    dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str = "none"
) -> tuple[Tensor, Tensor | None]:
    """``(dx [T, I], dbias [I] or None)`` of :func:`bias_gelu_forward`, in the dtypes of x and bias."""
    _check(x, bias)
    if dy.shape != x.shape:
        raise ValueError(f"dy must have x's shape {tuple(x.shape)}, not {tuple(dy.shape)}")
    tokens, width = x.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dbias = None if bias is None else torch.empty(width, dtype=bias.dtype, device=x.device)
    if x.numel() == 0:
        return dx, None if dbias is None else dbias.zero_()
    dy, x = contiguous_rows(dy), contiguous_rows(x)
    chosen = launch.parameters("bias_gelu_backward", launch.architecture())
    cols = _columns(width, chosen["COLS"])
    rows = max(1, chosen["ELEMENTS"] // cols)
    blocks = cdiv(width, cols)
    walkers = min(cdiv(tokens, rows), max(1, multiprocessors(x.device) * chosen["RESIDENT"] // blocks))
    partials = torch.empty((1, walkers, width), dtype=torch.float32, device=x.device) if dbias is not None else None
    with on_device(x):
        _backward_kernel[(blocks, walkers)](
            dy,
            x,
            bias,
            dx,
            partials,
            tokens,
            row_stride(dy),
            row_stride(x),
            WIDTH=width,
            APPROXIMATE=checked_approximate(approximate),
            PACKED=packed_rows(dy, x),
            COLS=cols,
            ROWS=rows,
            **launch.launch_options(chosen),
        )
        if dbias is not None:
            column_sums(partials, [dbias])
    return dx, dbias


def gelu_layer_norm_forward(
    x: Tensor,
    bias: Tensor | None,
    weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    approximate: str = "none",
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = LN(gelu(x + bias))`` for ``x [T, H]``: ``(y [T, H], mean [T], rstd [T])``, the statistics in float32.

    ``y`` has ``out_dtype``, by default x's. The backward takes x itself.
    """
    approximate = checked_approximate(approximate)
    return normalise(x, weight, ln_bias, eps, out_dtype=out_dtype or x.dtype, x_bias=bias, approximate=approximate)


def gelu_layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    approximate: str = "none",
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """``(dx, dbias, dweight, dln_bias)`` of :func:`gelu_layer_norm_forward`: dx in x's dtype, the sums in weight's."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight, dln_bias, dbias = normalise_backward(
        dy,
        x,
        mean,
        rstd,
        weight,
        dx=dx,
        x_bias=bias,
        x_bias_grad=bias is not None,
        approximate=checked_approximate(approximate),
    )
    return dx, dbias, dweight, dln_bias


def _check(x: Tensor, bias: Tensor | None) -> None:
    if x.dim() != 2:
        raise ValueError(f"x must be [T, I], not {tuple(x.shape)}")
    if bias is not None and bias.shape != x.shape[1:]:
        raise ValueError(f"bias must be [{x.shape[1]}], not {tuple(bias.shape)}")
    require_kernel_dtype("x", x)
    require_kernel_dtype("bias", bias)
