"""Attention over packed sequences: softmax(scale * q k^T + bias) v within each sequence, every key visible.

Three plans, chosen from ``max_seqlen`` on the host, so that nothing waits for the device:

======  ===============================================================================================================
group   A program holds GROUP whole sequences of one head, each in its own SLOT rows of a tile. Scores are block
        diagonal, so that GROUP sequences cost one dot; softmax takes one pass; there is no loop.
tile    The same kernel with one sequence, up to 128 rows, in a program.
loop    A program owns BLOCK_M query rows and walks its sequence's keys with the online softmax.
======  ===============================================================================================================

Programs are numbered head-fastest, so that neighbours read neighbouring memory. How loop programs find their work is
said at :func:`attention_tiles.find_tile`: closed form from cu_seqlens, at most one idle program a sequence and head.

T tokens, B sequences, S longest sequence, N heads, D head dim. Softmax is float32, with exp2. The backward is in
attention_backward.py; both are deterministic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_backward import attention_backward
from .attention_call import attention_schedule, check_call, strides
from .attention_plan import plan
from .attention_tiles import (
    dot_keys,
    dot_rows,
    exponential,
    extent,
    find_tile,
    head_base,
    keep_columns,
    key_columns,
    load_bias,
    load_rows,
    natural_lse,
    store_rows,
    visible_keys,
    whole_sequences,
)
from .common import dot, on_device

__all__ = ["attention_backward", "attention_forward", "attention_schedule", "plan"]

_INTEGERS = [
    "tokens", "batch", "longest", "q_head", "k_head", "v_head",
    "threshold", "site",
]  # fmt: skip


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["order_ptr"])
def forward_tile(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_ptr, order_ptr, bias_ptr, key_mask_ptr, seed_ptr,
    tokens, batch, longest, q_head, k_head, v_head, bias_batch, bias_head, bias_query, bias_key,
    score_scale, keep_scale, threshold, site,
    Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, VECTOR: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, SLOT: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One head of GROUP whole sequences: no loop, softmax in one pass."""
    ROWS: tl.constexpr = SLOT * GROUP
    head = tl.program_id(0) % HEADS
    head64 = head.to(tl.int64)
    item = tl.program_id(0) // HEADS
    origin, row, position, length, sequence = whole_sequences(
        tl.arange(0, ROWS), item, batch, longest, cu_ptr, order_ptr, SLOT, GROUP
    )
    origin, key, key_position, key_length, _ = whole_sequences(
        key_columns(ROWS, seed_ptr is not None), item, batch, longest, cu_ptr, order_ptr, SLOT, GROUP
    )
    live = position < length
    seen = key_position < key_length
    if key_mask_ptr is not None:
        seen = seen & (tl.load(key_mask_ptr + origin + key, mask=seen, other=0) != 0)
    q = load_rows(head_base(q_ptr, origin, head, q_head, Q_TOKEN, VECTOR), row, live, Q_TOKEN, D, BLOCK_D)
    k = load_rows(head_base(k_ptr, origin, head, k_head, K_TOKEN, VECTOR), key, seen, K_TOKEN, D, BLOCK_D)
    v = load_rows(head_base(v_ptr, origin, head, v_head, V_TOKEN, VECTOR), key, seen, V_TOKEN, D, BLOCK_D)

    column = key_columns(SLOT, seed_ptr is not None)
    visible = visible_keys(column, seen, row - position, length, key_mask_ptr, GROUP)
    scores = dot_rows(q, k, GROUP, PRECISION)
    factor = score_scale
    if bias_ptr is not None or EXACT:
        scores = scores * score_scale
        factor = 1.0
    if bias_ptr is not None:
        query_offset = head64 * bias_head + sequence.to(tl.int64) * bias_batch + position.to(tl.int64) * bias_query
        key_offset = column.to(tl.int64) * bias_key
        scores += load_bias(bias_ptr, query_offset[:, None], key_offset[None, :], live[:, None] & visible, EXACT)
    scores = tl.where(visible, scores, float("-inf"))
    top = tl.max(scores, 1)
    top = tl.where(top == float("-inf"), 0.0, top) * factor
    probs = exponential(scores * factor, top[:, None], EXACT)
    total = tl.sum(probs, 1)
    safe = tl.where(total == 0.0, 1.0, total)
    norm = 1.0 / safe
    if seed_ptr is not None:
        unit = (origin + row).to(tl.int64) * HEADS + head
        probs = tl.where(keep_columns(tl.load(seed_ptr), site, threshold, unit, 0, SLOT), probs, 0.0)
        norm = norm * keep_scale
    out = dot_keys(probs.to(v.dtype), v, tl.zeros((ROWS, BLOCK_D), tl.float32), GROUP, PRECISION) * norm[:, None]
    store_rows(head_base(out_ptr, origin, head, D, HEADS * D, 1), row, live, out, HEADS * D, D, BLOCK_D)
    lse = natural_lse(top, total, EXACT)
    tl.store(lse_ptr + head64 * tokens + origin + row, lse, mask=live)


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["order_ptr"])
def forward_loop(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, cu_ptr, cumulative_ptr, order_ptr, bias_ptr, key_mask_ptr, seed_ptr,
    tokens, batch, longest, q_head, k_head, v_head, bias_batch, bias_head, bias_query, bias_key,
    score_scale, keep_scale, threshold, site,
    Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, VECTOR: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One head of BLOCK_M query rows of one sequence: walks its keys with the online softmax."""
    head = tl.program_id(0) % HEADS
    head64 = head.to(tl.int64)
    sequence, first = find_tile(tl.program_id(0) // HEADS, cumulative_ptr, order_ptr, batch, BLOCK_M)
    start, length = extent(sequence, cu_ptr, longest)
    if first >= length:
        return
    row = tl.arange(0, BLOCK_M)
    column = key_columns(BLOCK_N, seed_ptr is not None)
    live = row < length - first
    token = start + first
    q = load_rows(head_base(q_ptr, token, head, q_head, Q_TOKEN, VECTOR), row, live, Q_TOKEN, D, BLOCK_D)
    k_base = head_base(k_ptr, start, head, k_head, K_TOKEN, VECTOR)
    v_base = head_base(v_ptr, start, head, v_head, V_TOKEN, VECTOR)
    factor = score_scale
    if bias_ptr is not None or EXACT:
        factor = 1.0
    if bias_ptr is not None:
        query_offset = head64 * bias_head + sequence.to(tl.int64) * bias_batch + (first + row).to(tl.int64) * bias_query
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
        unit = (token + row).to(tl.int64) * HEADS + head

    # Carried in the units of the exponent, as rounded there: exp(old top - new top) computed from the scores' own units
    # could be fused to a product of other digits than those that the sums so far were taken with.
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for offset in tl.range(0, length, BLOCK_N):
        seen = column < length - offset
        if key_mask_ptr is not None:
            seen = seen & (tl.load(key_mask_ptr + start + offset + column, mask=seen, other=0) != 0)
        k = load_rows(k_base, column, seen, K_TOKEN, D, BLOCK_D)
        v = load_rows(v_base, column, seen, V_TOKEN, D, BLOCK_D)
        scores = dot(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
        if bias_ptr is not None or EXACT:
            scores = scores * score_scale
        if bias_ptr is not None:
            key_offset = (offset + column).to(tl.int64) * bias_key
            mask = live[:, None] & seen[None, :]
            scores += load_bias(bias_ptr, query_offset[:, None], key_offset[None, :], mask, EXACT)
        if key_mask_ptr is not None or offset + BLOCK_N > length:
            scores = tl.where(seen[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * factor)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        probs = exponential(scores * factor, base[:, None], EXACT)
        shrink = exponential(top, base, EXACT)
        total = total * shrink + tl.sum(probs, 1)
        if seed_ptr is not None:
            keep = keep_columns(seed, site, threshold, unit, offset, BLOCK_N)
            probs = tl.where(keep, probs, 0.0)
        out = dot(probs.to(v.dtype), v, out * shrink[:, None], PRECISION)
        top = new_top
        k_base += BLOCK_N * K_TOKEN
        v_base += BLOCK_N * V_TOKEN
    safe = tl.where(total == 0.0, 1.0, total)
    norm = 1.0 / safe
    if seed_ptr is not None:
        norm = norm * keep_scale
    out = out * norm[:, None]
    store_rows(head_base(out_ptr, token, head, D, HEADS * D, 1), row, live, out, HEADS * D, D, BLOCK_D)
    lse = natural_lse(top, total, EXACT)
    tl.store(lse_ptr + head64 * tokens + token + row, lse, mask=live)


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    schedule: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Bidirectional attention within each sequence of a packed batch (Vaswani et al., 2017), fused.

    Args:
        q, k, v: ``[T, N, D]``, float16, bfloat16 or float32, of any strides with D contiguous: views of a fused
            ``[T, 3, N, D]`` projection are read in place. D is a multiple of 8 from 8 to 128.
        cu_seqlens: int32 ``[B + 1]`` from 0 to T; sequence b owns rows ``cu_seqlens[b]:cu_seqlens[b + 1]``. Rows
            beyond its last entry are not written.
        max_seqlen: at least the longest sequence's length; the plan follows from it, so the closer the better. A longer
            sequence takes part with its first max_seqlen rows; the others are neither read nor written.
        scale: of the scores, positive.
        bias: additive ``[B or 1, N or 1, S, S]`` of any strides, ``S >= max_seqlen``, indexed by position within the
            sequence. -inf hides, and so does anything at or below half the lowest number of its dtype.
        key_mask: bool ``[T]``; a key that is False is seen by no query, whatever its row holds.
        p, seed, site: dropout of the probabilities; seed is an int64 tensor of one element on q's device.
        schedule: from :func:`attention_schedule`.

    Returns:
        ``(out, lse)``: ``[T, N, D]`` contiguous in q's dtype, and the natural logarithm of the softmax's denominator,
        float32 ``[N, T]``. Rows that see no key hold 0 and -inf.

    Raises:
        ValueError: naming the argument, what it was and what is allowed.
    """
    call = check_call(
        {"q": q, "k": k, "v": v}, cu_seqlens, scale=scale, bias=bias, key_mask=key_mask, p=p, seed=seed, site=site,
        max_seqlen=max_seqlen, schedule=schedule,
    )  # fmt: skip
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((call.heads, call.tokens), dtype=torch.float32, device=q.device)
    if call.tokens == 0 or call.heads == 0 or call.batch == 0:
        return out, lse
    arguments = {"q_ptr": q, "k_ptr": k, "v_ptr": v, "out_ptr": out, "lse_ptr": lse, **strides(q=q, k=k, v=v)}
    with on_device(q):
        chosen = plan(max_seqlen, call.head_dim, q.dtype, **call.planned).forward
        grid = (chosen.programs(call.tokens, call.batch, call.heads),)
        if chosen.kernel == "attention_forward_tile":
            forward_tile[grid](**arguments, **call.arguments(), **chosen.blocks, **chosen.options)
        else:
            forward_loop[grid](
                **arguments, **call.arguments(), cumulative_ptr=call.cumulative, **chosen.blocks, **chosen.options
            )
    return out, lse
