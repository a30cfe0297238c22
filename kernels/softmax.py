"""dropout(softmax(scale * scores + mask)) over [B, N, Q, K], forward and backward: the path that shows its attention.

A row is read once into registers up to 16,384 keys and in two passes beyond. A key is hidden where its mask is at most
half its dtype's minimum (so -inf, the minimum, and the sum of two minima all hide) and counts for exactly nothing, NaN
scores included; a row with no visible key is all 0, and so is its gradient.

The backward reads the probabilities before dropout, which without dropout are the output itself: 6 bytes an element of
a 16-bit tensor. With dropout they are a second output (the kept half of the story is not enough: dropped entries have
gradients too), 2 bytes more than recomputing them from the scores would move, on a path that is not the fast one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .common import (
    LOG2E,
    Dropout,
    cdiv,
    contiguous_rows,
    next_power_of_2,
    on_device,
    philox_keep4,
    philox_keep8,
    reciprocal,
    require_kernel_dtype,
)

ATTENTION_WIDTH = 65536  # elements of dropout's index from one row to the next, whatever K


class _Plan(NamedTuple):
    """A program's tile, and ``step``, a common divisor of K and of all strides: how far apart vectors can be read."""

    block: int
    rows: int
    vector: int
    step: int
    num_warps: int


def softmax_plan(keys: int, itemsize: int, strides: Iterable[int] = ()) -> _Plan:
    """About 16 elements a thread, so two or more 16-byte loads in flight."""
    chosen = launch.parameters("softmax", launch.architecture())
    step = math.gcd(8, keys, *strides)
    block = min(max(next_power_of_2(keys), 16), chosen["ONE_PASS"])
    num_warps = min(16, max(chosen["num_warps"], block // (32 * chosen["VALUES"])))
    rows = max(1, chosen["VALUES"] * 32 * num_warps // block)
    return _Plan(block, rows, min(16 // itemsize, step), step, num_warps)


@triton.jit
def _row_offset(row, N, Q, stride_b, stride_n, stride_q):
    """Where rows (int32 indices into B * N * Q) of a strided [B, N, Q, K] begin: int64."""
    head = row // Q
    batch = (head // N).to(tl.int64)
    return batch * stride_b + (head % N).to(tl.int64) * stride_n + (row % Q).to(tl.int64) * stride_q


@triton.jit
def _logits(scores, mask, col, live, keys, scale, hidden_at):
    """scale * scores + mask of one tile of columns; -inf where hidden or outside."""
    inside = live & (col < keys)
    value = tl.load(scores + col, inside, 0.0).to(tl.float32) * scale
    if mask is not None:
        shift = tl.load(mask + col, inside, 0.0).to(tl.float32)
        value = tl.where(shift > hidden_at, value + shift, float("-inf"))
    return tl.where(inside, value, float("-inf"))


@triton.jit
def _keep(seed, site, threshold, row, start, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Dropout's mask of keys start .. start + BLOCK: index = row * 65536 + key."""
    if VECTOR == 8:
        group = row * 16384 + (start // 4 + 2 * tl.arange(0, BLOCK // 8))[None, :]
        keep = philox_keep8(seed, site, group, threshold)
    else:
        group = row * 16384 + (start // 4 + tl.arange(0, BLOCK // 4))[None, :]
        keep = philox_keep4(seed, site, group, threshold)
    return keep


@triton.jit(do_not_specialize=["rows", "N", "Q", "site", "threshold"])
def _forward_kernel(
    scores,
    mask,
    probs,
    dropped,
    seed,
    rows,
    N,
    Q,
    keys,
    scores_b,
    scores_n,
    scores_q,
    mask_b,
    mask_n,
    mask_q,
    scale,
    hidden_at,
    site,
    threshold,
    keep_scale,
    LOOP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    # the caller divided by STEP what it knows to be its multiple: so the compiler knows, too, and can use vectors
    keys *= STEP
    row32 = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    live = row32 < rows
    row = row32.to(tl.int64)
    cols = tl.arange(0, BLOCK)[None, :]
    source = scores + _row_offset(row32, N, Q, scores_b, scores_n, scores_q) * STEP
    added = None
    if mask is not None:
        added = mask + _row_offset(row32, N, Q, mask_b, mask_n, mask_q) * STEP
    if seed is not None:
        seed_value = tl.load(seed)

    if LOOP:
        top = tl.full([ROWS, 1], float("-inf"), tl.float32)
        total = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, keys, BLOCK):
            value = _logits(source, added, start + cols, live, keys, scale, hidden_at)
            new_top = tl.maximum(top, tl.max(value, 1, keep_dims=True))
            # a row with nothing visible so far keeps 0 as its base: -inf - -inf is NaN
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            total = total * tl.exp2((top - base) * LOG2E)
            total += tl.sum(tl.exp2((value - base) * LOG2E), 1, keep_dims=True)
            top = new_top
        base = tl.where(top == float("-inf"), 0.0, top)
        inverse = reciprocal(tl.where(total == 0.0, 1.0, total))
        for start in range(0, keys, BLOCK):
            col = start + cols
            value = _logits(source, added, col, live, keys, scale, hidden_at)
            value = tl.exp2((value - base) * LOG2E) * inverse
            inside = live & (col < keys)
            tl.store(probs + row * keys + col, value, inside)
            if seed is not None:
                keep = _keep(seed_value, site, threshold, row, start, BLOCK, VECTOR)
                tl.store(dropped + row * keys + col, tl.where(keep, value * keep_scale, 0.0), inside)
    else:
        value = _logits(source, added, cols, live, keys, scale, hidden_at)
        top = tl.max(value, 1, keep_dims=True)
        base = tl.where(top == float("-inf"), 0.0, top)
        value = tl.exp2((value - base) * LOG2E)
        total = tl.sum(value, 1, keep_dims=True)
        value *= reciprocal(tl.where(total == 0.0, 1.0, total))
        inside = live & (cols < keys)
        tl.store(probs + row * keys + cols, value, inside)
        if seed is not None:
            keep = _keep(seed_value, site, threshold, row, 0, BLOCK, VECTOR)
            tl.store(dropped + row * keys + cols, tl.where(keep, value * keep_scale, 0.0), inside)


@triton.jit
def _probs_and_grads(
    probs, grads, seed, site, threshold, keep_scale, row, start, col, inside, BLOCK: tl.constexpr, VECTOR: tl.constexpr
):
    """One tile of the probabilities and of the gradients that reach them through dropout."""
    prob = tl.load(probs + col, inside, 0.0).to(tl.float32)
    grad = tl.load(grads + col, inside, 0.0).to(tl.float32)
    if seed is not None:
        keep = _keep(tl.load(seed), site, threshold, row, start, BLOCK, VECTOR)
        grad = tl.where(keep, grad * keep_scale, 0.0)
    return prob, grad


@triton.jit(do_not_specialize=["rows", "N", "Q", "site", "threshold"])
def _backward_kernel(
    grads,
    probs,
    dscores,
    seed,
    rows,
    N,
    Q,
    keys,
    grads_b,
    grads_n,
    grads_q,
    scale,
    site,
    threshold,
    keep_scale,
    LOOP: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    VECTOR: tl.constexpr,
    STEP: tl.constexpr,
):
    # the caller divided by STEP what it knows to be its multiple: so the compiler knows, too, and can use vectors
    keys *= STEP
    row32 = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    live = row32 < rows
    row = row32.to(tl.int64)
    cols = tl.arange(0, BLOCK)[None, :]
    grads += _row_offset(row32, N, Q, grads_b, grads_n, grads_q) * STEP
    probs += row * keys
    dscores += row * keys
    if LOOP:
        mean = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, keys, BLOCK):
            col = start + cols
            inside = live & (col < keys)
            prob, grad = _probs_and_grads(
                probs, grads, seed, site, threshold, keep_scale, row, start, col, inside, BLOCK, VECTOR
            )
            mean += tl.sum(prob * grad, 1, keep_dims=True)
        for start in range(0, keys, BLOCK):
            col = start + cols
            inside = live & (col < keys)
            prob, grad = _probs_and_grads(
                probs, grads, seed, site, threshold, keep_scale, row, start, col, inside, BLOCK, VECTOR
            )
            tl.store(dscores + col, prob * (grad - mean) * scale, inside)
    else:
        inside = live & (cols < keys)
        prob, grad = _probs_and_grads(
            probs, grads, seed, site, threshold, keep_scale, row, 0, cols, inside, BLOCK, VECTOR
        )
        mean = tl.sum(prob * grad, 1, keep_dims=True)
        tl.store(dscores + cols, prob * (grad - mean) * scale, inside)


def scaled_masked_softmax_forward(
    scores: Tensor,
    mask: Tensor | None = None,
    scale: float = 1.0,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> tuple[Tensor, Tensor]:
    """``dropout(softmax(scale * scores + mask))`` and, for the backward, the probabilities before dropout.

    Args:
        scores: ``[B, N, Q, K]``, any strides (copied if the last dimension is not contiguous).
        mask: additive, ``[B or 1, N or 1, Q or 1, K or 1]``; it has no gradient here.
        p, seed, site: dropout; seed is an int64 tensor of one element on the device, K then at most 65,536.

    Returns:
        Two contiguous ``[B, N, Q, K]`` in the dtype that scores and mask promote to; one tensor twice where p is 0.
    """
    if scores.dim() != 4:
        raise ValueError(f"scores must be [B, N, Q, K], not {tuple(scores.shape)}")
    require_kernel_dtype("scores", scores)
    require_kernel_dtype("mask", mask)
    dropout = _dropout(p, seed, site, scores.shape[3])
    dtype = scores.dtype
    if mask is not None:
        if mask.dim() != 4 or any(m not in (1, s) for m, s in zip(mask.shape, scores.shape, strict=True)):
            raise ValueError(f"mask must broadcast to scores {tuple(scores.shape)}, not {tuple(mask.shape)}")
        dtype = torch.promote_types(dtype, mask.dtype)
    probs = torch.empty(scores.shape, dtype=dtype, device=scores.device)
    dropped = probs if dropout.seed is None else torch.empty_like(probs)
    if scores.numel() == 0:
        return dropped, probs
    batch, heads, queries, keys = scores.shape
    scores = contiguous_rows(scores)
    strides, mask_strides, hidden_at = scores.stride()[:3], (0, 0, 0), 0.0
    if mask is not None:
        hidden_at = torch.finfo(mask.dtype).min / 2
        mask = contiguous_rows(mask.expand(*mask.shape[:3], keys)).expand(scores.shape)
        mask_strides = mask.stride()[:3]
    plan = softmax_plan(keys, max(scores.element_size(), probs.element_size()), (*strides, *mask_strides))
    rows = batch * heads * queries
    with on_device(scores):
        _forward_kernel[(cdiv(rows, plan.rows),)](
            scores,
            mask,
            probs,
            dropped,
            dropout.seed,
            rows,
            heads,
            queries,
            keys // plan.step,
            *(stride // plan.step for stride in (*strides, *mask_strides)),
            scale,
            hidden_at,
            dropout.site,
            dropout.threshold,
            dropout.scale,
            LOOP=keys > plan.block,
            BLOCK=plan.block,
            ROWS=plan.rows,
            VECTOR=plan.vector,
            STEP=plan.step,
            num_warps=plan.num_warps,
        )
    return dropped, probs


def scaled_masked_softmax_backward(
    grads: Tensor,
    probs: Tensor,
    scale: float = 1.0,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The gradient of scores, ``[B, N, Q, K]`` in ``dtype`` (by default that of probs), from the dropped output's.

    ``probs`` are the contiguous probabilities before dropout; ``grads [B, N, Q, K]`` has any strides.
    """
    if grads.shape != probs.shape:
        raise ValueError(f"grads must have the shape of probs {tuple(probs.shape)}, not {tuple(grads.shape)}")
    require_kernel_dtype("grads", grads)
    dropout = _dropout(p, seed, site, probs.shape[3])
    dscores = torch.empty(probs.shape, dtype=dtype or probs.dtype, device=probs.device)
    if probs.numel() == 0:
        return dscores
    batch, heads, queries, keys = probs.shape
    grads, probs = contiguous_rows(grads), probs.contiguous()
    plan = softmax_plan(
        keys, max(grads.element_size(), probs.element_size(), dscores.element_size()), grads.stride()[:3]
    )
    rows = batch * heads * queries
    with on_device(probs):
        _backward_kernel[(cdiv(rows, plan.rows),)](
            grads,
            probs,
            dscores,
            dropout.seed,
            rows,
            heads,
            queries,
            keys // plan.step,
            *(stride // plan.step for stride in grads.stride()[:3]),
            scale,
            dropout.site,
            dropout.threshold,
            dropout.scale,
            LOOP=keys > plan.block,
            BLOCK=plan.block,
            ROWS=plan.rows,
            VECTOR=plan.vector,
            STEP=plan.step,
            num_warps=plan.num_warps,
        )
    return dscores


def _dropout(p: float, seed: Tensor | None, site: int, keys: int) -> Dropout:
    if p > 0 and keys > ATTENTION_WIDTH:
        raise ValueError(f"dropout numbers at most {ATTENTION_WIDTH} keys a row; scores has {keys}")
    return Dropout.of(p, seed, site)
