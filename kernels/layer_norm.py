"""LayerNorm over the rows of [T, H], alone or with dropout and the residual sum before it, forward and backward.

A row is CHUNKS tiles of COLS columns, chosen so that a warp holds whole rows where it can (the reductions are then
shuffles, with no barrier) and no lane works on columns beyond H: 768 is three chunks of 256, not 1,024 with a quarter
idle. Statistics are float32, two passes over registers.

What the backward reads, and why. Per element of a 16-bit batch, dropout on:

    saved                      forward moves       backward moves        both
    x and residual             6 bytes             10                    16
    z = residual + dropout(x)  8 (writes z too)     8                    16
    y                          6                    8                    14

y is the cheapest, but xhat = (y - bias) / weight loses all digits where |bias| >> |weight| and is undefined at 0. The
other two move the same bytes and hold one [T, H] tensor each (x dies when z is saved; the residual is the next
linear's saved input either way). z wins: the backward, which also carries the column sums, is the slower kernel of the
two and moves least; plain LayerNorm's backward is the same kernel with z = x; and without dropout dx and dresidual are
one tensor (6 bytes). Inference saves nothing and moves 6. z is rounded to its storage dtype, as eager PyTorch rounds
it; the forward's statistics and y come from the unrounded sum.

At 65,536 x 768 in bfloat16 that is 302 MB forward without saving, 403 MB with; 403 MB backward with dropout, 302 MB
without, and 10 MB of column sums: 70 and 94 us at 4.3 TB/s. Instructions a multiprocessor's scheduler must issue for
it, at 1.76 GHz: forward 30 us bare, 67 us with dropout and saving; backward 39 us, with dropout 70 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .common import (
    NO_DROPOUT,
    Dropout,
    cdiv,
    column_sums,
    contiguous_rows,
    gelu,
    gelu_and_grad,
    multiprocessors,
    on_device,
    packed_rows,
    philox_keep,
    philox_keep4,
    philox_keep8,
    require_kernel_dtype,
    row_plan,
    row_stride,
)

MAX_HIDDEN = 8192


# --- forward ---


@triton.jit
def _keep(seed, site, threshold, rows, start, H: tl.constexpr, COLS: tl.constexpr, VECTOR: tl.constexpr):
    """Dropout's mask of columns start .. start + COLS of the rows: index = row * H + column."""
    if H % 4 != 0:
        keep = philox_keep(seed, site, rows * H + (start + tl.arange(0, COLS))[None, :], threshold)
    elif VECTOR == 8:
        group = rows * (H // 4) + (start // 4 + 2 * tl.arange(0, COLS // 8))[None, :]
        keep = philox_keep8(seed, site, group, threshold)
    else:
        group = rows * (H // 4) + (start // 4 + tl.arange(0, COLS // 4))[None, :]
        keep = philox_keep4(seed, site, group, threshold)
    return keep


@triton.jit(do_not_specialize=["T", "site", "threshold"])
def _forward_kernel(
    x,
    x_bias,
    residual,
    weight,
    bias,
    y,
    z,
    mean,
    rstd,
    seed,
    T,
    x_stride,
    residual_stride,
    eps,
    site,
    threshold,
    scale,
    H: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    PACKED: tl.constexpr,
    COLS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """y = LN(residual + dropout(gelu(x + x_bias))), each step only where its tensor or option is given."""
    if PACKED:
        x_stride = H
        residual_stride = H
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    live = rows < T
    # every tile spans the rows, weights too: all loads then share one layout and no warp waits for another
    cols = tl.broadcast_to(tl.arange(0, COLS)[None, :], (ROWS, COLS))
    if seed is not None:
        seed_value = tl.load(seed)

    values = ()
    for chunk in tl.static_range(CHUNKS):
        col = chunk * COLS + cols
        inside = col < H
        value = tl.load(x + rows * x_stride + col, live & inside, 0.0, eviction_policy="evict_first").to(tl.float32)
        if x_bias is not None:
            value += tl.load(x_bias + col, inside, 0.0).to(tl.float32)
        if APPROXIMATE is not None:
            value = gelu(value, APPROXIMATE, x.dtype.element_ty != tl.float32)
        if seed is not None:
            keep = _keep(seed_value, site, threshold, rows, chunk * COLS, H, COLS, VECTOR)
            value = tl.where(keep, value * scale, 0.0)
        if residual is not None:
            value += tl.load(residual + rows * residual_stride + col, live & inside, 0.0).to(tl.float32)
        if z is not None:
            tl.store(z + rows * H + col, value, live & inside)
        values = values + (value,)
        if chunk == 0:
            total = value
        else:
            total += value
    row_mean = tl.sum(total, 1, keep_dims=True) / H

    for chunk in tl.static_range(CHUNKS):
        centred = tl.where(chunk * COLS + cols < H, values[chunk] - row_mean, 0.0)
        if chunk == 0:
            square = centred * centred
        else:
            square += centred * centred
    row_rstd = tl.rsqrt(tl.sum(square, 1, keep_dims=True) / H + eps)
    if mean is not None:
        tl.store(mean + rows, row_mean, live)
        tl.store(rstd + rows, row_rstd, live)

    for chunk in tl.static_range(CHUNKS):
        col = chunk * COLS + cols
        inside = col < H
        w = tl.load(weight + col, inside, 0.0).to(tl.float32)
        b = tl.load(bias + col, inside, 0.0).to(tl.float32)
        tl.store(y + rows * H + col, (values[chunk] - row_mean) * row_rstd * w + b, live & inside)


@triton.jit(do_not_specialize=["T", "site", "threshold"])
def _backward_kernel(
    dy,
    dy_more,
    x,
    x_bias,
    weight,
    mean,
    rstd,
    dz,
    dx,
    partials,
    seed,
    T,
    dy_stride,
    dy_more_stride,
    x_stride,
    site,
    threshold,
    scale,
    H: tl.constexpr,
    APPROXIMATE: tl.constexpr,
    SUMS: tl.constexpr,
    PACKED: tl.constexpr,
    COLS: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of LN's input dz and of what went before it, dx, from x: the input z itself or, with GELU, its source.

    A program walks over row tiles and leaves the column sums of its rows in partials [SUMS, programs, H]: dweight,
    dbias and, as the third, dx_bias.
    """
    if PACKED:
        dy_stride = H
        dy_more_stride = H
        x_stride = H
    cols = tl.broadcast_to(tl.arange(0, COLS)[None, :], (ROWS, COLS))
    if seed is not None and STAGES > 1:
        seed_value = tl.load(seed)
    weights = ()
    biases = ()
    dweight = ()
    dbias = ()
    dx_bias = ()
    for chunk in tl.static_range(CHUNKS):
        inside = chunk * COLS + cols < H
        zero = tl.zeros([ROWS, COLS], tl.float32)
        if STAGES > 1:
            # a pipelined loop would stage these through shared memory each time; without stages, reading them again
            # (from L1) frees the registers that the widest rows lack
            weights = weights + (tl.load(weight + chunk * COLS + cols, inside, 0.0),)
        if x_bias is not None:
            biases = biases + (tl.load(x_bias + chunk * COLS + cols, inside, 0.0),)
        dweight = dweight + (zero,)
        dbias = dbias + (zero,)
        if SUMS == 3:
            dx_bias = dx_bias + (zero,)

    for tile in tl.range(tl.program_id(0), tl.cdiv(T, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = (tile * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None]
        live = rows < T
        row_mean = tl.load(mean + rows, live, 0.0)
        row_rstd = tl.load(rstd + rows, live, 0.0)
        xhats = ()
        wgrads = ()
        slopes = ()
        dweight_next = ()
        dbias_next = ()
        for chunk in tl.static_range(CHUNKS):
            col = chunk * COLS + cols
            mask = live & (col < H)
            grad = tl.load(dy + rows * dy_stride + col, mask, 0.0).to(tl.float32)
            if dy_more is not None:
                grad += tl.load(dy_more + rows * dy_more_stride + col, mask, 0.0).to(tl.float32)
            value = tl.load(x + rows * x_stride + col, mask, 0.0).to(tl.float32)
            if x_bias is not None:
                value += biases[chunk].to(tl.float32)
            if APPROXIMATE is not None:
                value, slope = gelu_and_grad(value, APPROXIMATE, x.dtype.element_ty != tl.float32)
                slopes = slopes + (slope,)
            xhat = (value - row_mean) * row_rstd
            if STAGES > 1:
                w = weights[chunk]
            else:
                w = tl.load(weight + col, col < H, 0.0)
            wgrad = grad * w.to(tl.float32)
            dweight_next = dweight_next + (dweight[chunk] + grad * xhat,)
            dbias_next = dbias_next + (dbias[chunk] + grad,)
            xhats = xhats + (xhat,)
            wgrads = wgrads + (wgrad,)
            if chunk == 0:
                sum_wgrad = wgrad
                sum_wgrad_xhat = wgrad * xhat
            else:
                sum_wgrad += wgrad
                sum_wgrad_xhat += wgrad * xhat
        dweight = dweight_next
        dbias = dbias_next
        # joined, so that rows which span warps meet at one barrier, not two
        sum_wgrad, sum_wgrad_xhat = tl.split(tl.sum(tl.join(sum_wgrad, sum_wgrad_xhat), 1))
        row_shift = sum_wgrad[:, None] * (-row_rstd / H)
        row_slope = sum_wgrad_xhat[:, None] * (-row_rstd / H)
        if seed is not None and STAGES == 1:
            seed_value = tl.load(seed)  # here, for the same want of registers
        dx_bias_next = ()
        for chunk in tl.static_range(CHUNKS):
            col = chunk * COLS + cols
            mask = live & (col < H)
            dvalue = wgrads[chunk] * row_rstd + (xhats[chunk] * row_slope + row_shift)
            if dz is not None:
                tl.store(dz + rows * H + col, dvalue, mask)
            if seed is not None:
                keep = _keep(seed_value, site, threshold, rows, chunk * COLS, H, COLS, VECTOR)
                dvalue = tl.where(keep, dvalue * scale, 0.0)
            if APPROXIMATE is not None:
                dvalue *= slopes[chunk]
            if dx is not None:
                tl.store(dx + rows * H + col, dvalue, mask)
            if SUMS == 3:
                dx_bias_next = dx_bias_next + (dx_bias[chunk] + dvalue,)
        dx_bias = dx_bias_next

    col = tl.arange(0, COLS)
    place = partials + tl.program_id(0).to(tl.int64) * H + col
    plane = tl.num_programs(0).to(tl.int64) * H
    for chunk in tl.static_range(CHUNKS):
        inside = chunk * COLS + col < H
        tl.store(place + chunk * COLS, tl.sum(dweight[chunk], 0), inside)
        tl.store(place + plane + chunk * COLS, tl.sum(dbias[chunk], 0), inside)
        if SUMS == 3:
            tl.store(place + 2 * plane + chunk * COLS, tl.sum(dx_bias[chunk], 0), inside)


# --- launchers ---


def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm (Ba et al., 2016) of the rows of ``x [T, H]``: ``(y [T, H], mean [T], rstd [T])``.

    ``y`` has ``out_dtype``, by default x's; the statistics are float32. The backward takes x itself.
    """
    y, mean, rstd = normalise(x, weight, bias, eps, out_dtype=out_dtype or x.dtype)
    return y, mean, rstd


def layer_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dx, dweight, dbias)`` of :func:`layer_norm_forward`: dx in x's dtype, the others in weight's."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight, dbias, _ = normalise_backward(dy, x, mean, rstd, weight, dz=dx)
    return dx, dweight, dbias


def dropout_add_layer_norm_forward(
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
    out_dtype: torch.dtype | None = None,
    save: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """``y = LN(residual + dropout(x + x_bias))``: ``(y, z, mean, rstd)``, the last three None unless ``save``.

    Args:
        x, residual: ``[T, H]``, H at most 8,192, dtypes may differ; rows of any stride.
        weight, bias, x_bias: ``[H]``.
        p, seed, site: dropout of ``x + x_bias``; seed is an int64 tensor of one element on x's device.
        out_dtype: of ``y``; by default what the dtypes of x and residual promote to, which is also z's.
        save: write z (the sum that is normalised) and its float32 statistics ``[T]`` for the backward.
    """
    if residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, not {tuple(residual.shape)}")
    dtype = torch.promote_types(x.dtype, residual.dtype)
    z = torch.empty(x.shape, dtype=dtype, device=x.device) if save else None
    y, mean, rstd = normalise(
        x,
        weight,
        bias,
        eps,
        out_dtype=out_dtype or dtype,
        x_bias=x_bias,
        residual=residual,
        z=z,
        statistics=save,
        dropout=Dropout.of(p, seed, site),
    )
    return y, z, mean, rstd


def dropout_add_layer_norm_backward(
    dy: Tensor,
    z: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    x_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    x_bias_grad: bool = False,
    dy_more: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """``(dx, dresidual, dweight, dbias, dx_bias)`` of :func:`dropout_add_layer_norm_forward`, from what it saved.

    dx and dresidual have ``x_dtype`` and ``residual_dtype`` (z's by default). They are **one tensor** where p is 0 and
    the dtypes agree: a caller that writes into one must copy it first. The sums over rows have weight's dtype; dx_bias
    is None unless ``x_bias_grad``. ``dy_more [T, H]`` is added to dy on the way in: the second gradient of a y that was
    used twice (by the next linear and the next residual), one read here where a separate sum is two and a write.
    """
    dropout = Dropout.of(p, seed, site)
    dresidual = torch.empty(z.shape, dtype=residual_dtype or z.dtype, device=z.device)
    if dropout.seed is None and (x_dtype or z.dtype) == dresidual.dtype:
        dx = None
    else:
        dx = torch.empty(z.shape, dtype=x_dtype or z.dtype, device=z.device)
    dweight, dbias, dx_bias = normalise_backward(
        dy, z, mean, rstd, weight, dz=dresidual, dx=dx, x_bias_grad=x_bias_grad, dy_more=dy_more, dropout=dropout
    )
    return dresidual if dx is None else dx, dresidual, dweight, dbias, dx_bias


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    out_dtype: torch.dtype,
    x_bias: Tensor | None = None,
    residual: Tensor | None = None,
    z: Tensor | None = None,
    statistics: bool = True,
    dropout: Dropout = NO_DROPOUT,
    approximate: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Launches the forward kernel: ``(y, mean, rstd)``. z, if given, receives the sum; approximate adds a GELU."""
    if x.dim() != 2 or not 1 <= x.shape[1] <= MAX_HIDDEN:
        raise ValueError(f"x must be [T, H] with 1 <= H <= {MAX_HIDDEN}, not {tuple(x.shape)}")
    for name, tensor in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias), ("x_bias", x_bias)):
        require_kernel_dtype(name, tensor)
    tokens, hidden = x.shape
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    mean = torch.empty(tokens, dtype=torch.float32, device=x.device) if statistics else None
    rstd = torch.empty(tokens, dtype=torch.float32, device=x.device) if statistics else None
    if tokens == 0:
        return y, mean, rstd
    x, residual = contiguous_rows(x), contiguous_rows(residual)
    itemsize = max(t.element_size() for t in (x, y, residual) if t is not None)
    chosen = launch.parameters("layer_norm_forward", launch.architecture(), bytes=itemsize)
    plan = row_plan(hidden, itemsize, chosen["VALUES"], chosen["num_warps"])
    with on_device(x):
        _forward_kernel[(cdiv(tokens, plan.rows),)](
            x,
            x_bias,
            residual,
            weight,
            bias,
            y,
            z,
            mean,
            rstd,
            dropout.seed,
            tokens,
            row_stride(x),
            row_stride(residual),
            eps,
            dropout.site,
            dropout.threshold,
            dropout.scale,
            H=hidden,
            APPROXIMATE=approximate,
            PACKED=packed_rows(x, residual),
            COLS=plan.cols,
            CHUNKS=plan.chunks,
            ROWS=plan.rows,
            VECTOR=plan.vector,
            **launch.launch_options({**chosen, "num_warps": plan.num_warps}),
        )
    return y, mean, rstd


def normalise_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    *,
    dz: Tensor | None = None,
    dx: Tensor | None = None,
    x_bias: Tensor | None = None,
    x_bias_grad: bool = False,
    dy_more: Tensor | None = None,
    dropout: Dropout = NO_DROPOUT,
    approximate: str | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launches the backward kernel and the sums' second stage: fills dz and dx, ``(dweight, dbias, dx_bias)``.

    ``x`` is what the forward read (GELU's source, with its bias) or, without GELU, the sum z that it normalised.
    """
    if dy.shape != x.shape or (dy_more is not None and dy_more.shape != x.shape):
        raise ValueError(f"dy must have the shape of what was normalised, {tuple(x.shape)}, not {tuple(dy.shape)}")
    for name, tensor in (("dy", dy), ("dy_more", dy_more), ("x", x), ("weight", weight), ("x_bias", x_bias)):
        require_kernel_dtype(name, tensor)
    tokens, hidden = x.shape
    sums = 3 if x_bias_grad else 2
    outs = [torch.empty(hidden, dtype=weight.dtype, device=x.device) for _ in range(sums)]
    if tokens == 0:
        outs = [out.zero_() for out in outs]
        return outs[0], outs[1], outs[2] if x_bias_grad else None
    dy, x, dy_more = contiguous_rows(dy), contiguous_rows(x), contiguous_rows(dy_more)
    itemsize = max(t.element_size() for t in (dy, x, dz, dx) if t is not None)
    arch = launch.architecture()
    chosen = launch.parameters("layer_norm_backward", arch)
    plan = row_plan(hidden, itemsize, chosen["VALUES"], chosen["num_warps"])
    chosen = launch.parameters("layer_norm_backward_resident", arch, values=plan.chunks * plan.vector)
    # persistent, so all of it must be resident: a last half-wave would double the time
    programs = multiprocessors(x.device) * max(1, chosen["RESIDENT_WARPS"] // plan.num_warps)
    programs = min(programs, cdiv(tokens, plan.rows))
    partials = torch.empty((sums, programs, hidden), dtype=torch.float32, device=x.device)
    with on_device(x):
        _backward_kernel[(programs,)](
            dy,
            dy_more,
            x,
            x_bias,
            weight,
            mean,
            rstd,
            dz,
            dx,
            partials,
            dropout.seed,
            tokens,
            row_stride(dy),
            row_stride(dy_more),
            row_stride(x),
            dropout.site,
            dropout.threshold,
            dropout.scale,
            H=hidden,
            APPROXIMATE=approximate,
            SUMS=sums,
            PACKED=packed_rows(dy, dy_more, x),
            COLS=plan.cols,
            CHUNKS=plan.chunks,
            ROWS=plan.rows,
            VECTOR=plan.vector,
            STAGES=chosen["num_stages"],
            num_warps=plan.num_warps,
            **launch.launch_options(chosen),
        )
        column_sums(partials, outs)
    return outs[0], outs[1], outs[2] if x_bias_grad else None
