"""Attention's backward: dq, dk, dv and the gradient of an additive bias. No atomics anywhere: bitwise reproducible.

Where sequences fit a tile, one kernel (:func:`backward_tile`) recomputes the probabilities once and makes all three
gradients: five dots a tile, each of q, k, v and dout read once. Beyond, dq (:func:`backward_queries`) and then dk and
dv (:func:`backward_keys`) walk the other side of the scores, seven dots in all. The alternative, five dots with dq
summed by float32 atomics, needs a zeroed buffer, a conversion and twice the traffic for dq, and is not reproducible.

T tokens, B sequences, S longest sequence, N heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bias import bias_gradient
from .attention_call import check_call, strides
from .attention_plan import plan
from .attention_tiles import (
    dot_keys,
    dot_queries,
    dot_rows,
    exponential,
    extent,
    find_tile,
    head_base,
    inverse_sum,
    keep_bits,
    keep_columns,
    keep_rows,
    key_columns,
    key_rows,
    load_bias,
    load_keep,
    load_lse,
    load_rows,
    store_keep,
    store_rows,
    store_stats,
    unpack_columns,
    unpack_rows,
    visible_keys,
    whole_sequences,
)
from .common import cdiv, dot, on_device

# Up to this length the first of two kernels leaves dropout's choices to the second, a bit each: drawing them again
# costs as much as everything else there. Beyond, T * N * S / 8 bytes are more than that is worth.
_KEEP_UP_TO = 1024
_INTEGERS = [
    "tokens", "batch", "longest", "q_head", "k_head", "v_head", "o_head", "do_head", "dq_head", "dk_head", "dv_head",
    "threshold", "site", "keep_row",
]  # fmt: skip


@triton.jit
def without_scale(delta, keep_scale):
    """delta for kernels that scale what dropout kept at their end, not element by element: by 1 - p."""
    return tl.where(keep_scale > 0.0, delta / keep_scale, 0.0)


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["order_ptr"])
def backward_tile(
    do_ptr, q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, dq_ptr, dk_ptr, dv_ptr, stats_ptr, cu_ptr, order_ptr, bias_ptr,
    key_mask_ptr, seed_ptr, tokens, batch, longest,
    do_head, q_head, k_head, v_head, o_head, dq_head, dk_head, dv_head,
    bias_batch, bias_head, bias_query, bias_key, scale, score_scale, keep_scale, threshold, site,
    DO_TOKEN: tl.constexpr, Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, O_TOKEN: tl.constexpr,
    DQ_TOKEN: tl.constexpr, DK_TOKEN: tl.constexpr, DV_TOKEN: tl.constexpr, VECTOR: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, SLOT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One head of GROUP whole sequences: dq, dk and dv from one recomputation of the probabilities."""
    ROWS: tl.constexpr = SLOT * GROUP
    head = tl.program_id(0) % HEADS
    head64 = head.to(tl.int64)
    item = tl.program_id(0) // HEADS
    origin, row, position, length, sequence = whole_sequences(
        tl.arange(0, ROWS), item, batch, longest, cu_ptr, order_ptr, SLOT, GROUP
    )
    live = position < length
    q = load_rows(head_base(q_ptr, origin, head, q_head, Q_TOKEN, VECTOR), row, live, Q_TOKEN, D, BLOCK_D)
    do = load_rows(head_base(do_ptr, origin, head, do_head, DO_TOKEN, VECTOR), row, live, DO_TOKEN, D, BLOCK_D)
    lse = load_lse(lse_ptr + head64 * tokens + origin, row, live, EXACT)
    if BLOCK_N < ROWS:
        tl.static_assert(not EXACT)  # needs a row's sum before its first probability is used
        o = load_rows(head_base(o_ptr, origin, head, o_head, O_TOKEN, VECTOR), row, live, O_TOKEN, D, BLOCK_D)
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        if seed_ptr is not None:
            delta = without_scale(delta, keep_scale)
        if stats_ptr is not None:
            store_stats(stats_ptr, tokens, head64, origin + row, live, delta, lse, None, HEADS, EXACT)
    if bias_ptr is not None:
        query_offset = head64 * bias_head + sequence.to(tl.int64) * bias_batch + position.to(tl.int64) * bias_query
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
        unit = (origin + row).to(tl.int64) * HEADS + head

    factor = scale
    if seed_ptr is not None:
        factor = scale * keep_scale
    dq = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for offset in tl.range(0, ROWS, BLOCK_N):
        origin, key, key_position, key_length, _ = whole_sequences(
            offset + key_columns(BLOCK_N, seed_ptr is not None), item, batch, longest, cu_ptr, order_ptr, SLOT, GROUP
        )
        key_live = key_position < key_length
        seen = key_live
        if key_mask_ptr is not None:
            seen = seen & (tl.load(key_mask_ptr + origin + key, mask=key_live, other=0) != 0)
        k = load_rows(head_base(k_ptr, origin, head, k_head, K_TOKEN, VECTOR), key, seen, K_TOKEN, D, BLOCK_D)
        v = load_rows(head_base(v_ptr, origin, head, v_head, V_TOKEN, VECTOR), key, seen, V_TOKEN, D, BLOCK_D)
        column = offset + key_columns(BLOCK_N // GROUP, seed_ptr is not None)
        visible = visible_keys(column, seen, row - position, length, key_mask_ptr, GROUP)
        scores = dot_rows(q, k, GROUP, PRECISION) * score_scale
        if bias_ptr is not None:
            key_offset = column.to(tl.int64) * bias_key
            scores += load_bias(bias_ptr, query_offset[:, None], key_offset[None, :], live[:, None] & visible, EXACT)
        if BLOCK_N == ROWS:  # all keys are here: the softmax anew, free of how lse was rounded
            scores = tl.where(visible, scores, float("-inf"))
            top = tl.max(scores, 1)
            top = tl.where(top == float("-inf"), 0.0, top)
            probs = exponential(scores, top[:, None], EXACT)
            inverse = inverse_sum(tl.sum(probs, 1))
            probs = probs * inverse[:, None]
        else:
            probs = tl.where(visible, exponential(scores, lse[:, None], EXACT), 0.0)
        kept = probs
        if seed_ptr is not None:
            keep = keep_columns(seed, site, threshold, unit, offset, BLOCK_N // GROUP)
            kept = tl.where(keep, probs, 0.0)
        dv = dot_queries(kept.to(do.dtype), do, GROUP, PRECISION)
        if seed_ptr is not None:
            dv = dv * keep_scale
        dv_base = head_base(dv_ptr, origin, head, dv_head, DV_TOKEN, VECTOR)
        store_rows(dv_base, key, key_live, dv, DV_TOKEN, D, BLOCK_D)
        dprobs = dot_rows(do, v, GROUP, PRECISION)
        if seed_ptr is not None:
            dprobs = tl.where(keep, dprobs, 0.0)
        if BLOCK_N == ROWS:  # and delta is had without reading out
            delta = tl.sum(probs * dprobs, 1)
            if EXACT:  # what rounding left of a sum that should be 0
                delta += tl.sum(probs * (dprobs - delta[:, None]), 1)
            if stats_ptr is not None:
                reference = top if EXACT else lse
                store_stats(stats_ptr, tokens, head64, origin + row, live, delta, reference, inverse, HEADS, EXACT)
        dscores = (probs * (dprobs - delta[:, None])).to(q.dtype)
        dq = dot_keys(dscores, k, dq, GROUP, PRECISION)
        dk = dot_queries(dscores, q, GROUP, PRECISION) * factor
        dk_base = head_base(dk_ptr, origin, head, dk_head, DK_TOKEN, VECTOR)
        store_rows(dk_base, key, key_live, dk, DK_TOKEN, D, BLOCK_D)
    dq_base = head_base(dq_ptr, origin, head, dq_head, DQ_TOKEN, VECTOR)
    store_rows(dq_base, row, live, dq * factor, DQ_TOKEN, D, BLOCK_D)


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["order_ptr"])
def backward_queries(
    do_ptr, q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, dq_ptr, stats_ptr, keep_ptr, cu_ptr, cumulative_ptr, order_ptr,
    bias_ptr, key_mask_ptr, seed_ptr, tokens, batch, longest, keep_row,
    do_head, q_head, k_head, v_head, o_head, dq_head,
    bias_batch, bias_head, bias_query, bias_key, scale, score_scale, keep_scale, threshold, site,
    DO_TOKEN: tl.constexpr, Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, O_TOKEN: tl.constexpr,
    DQ_TOKEN: tl.constexpr, VECTOR: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dq of BLOCK_M query rows, walking the keys.

    Leaves what backward_keys needs of each row in ``stats`` [2 or 3, N, T]: delta = rowsum(dout * out), lse as
    :func:`load_lse` makes it and, if EXACT, the inverse of the sum of the probabilities that it gives.
    """
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
    do = load_rows(head_base(do_ptr, token, head, do_head, DO_TOKEN, VECTOR), row, live, DO_TOKEN, D, BLOCK_D)
    o = load_rows(head_base(o_ptr, token, head, o_head, O_TOKEN, VECTOR), row, live, O_TOKEN, D, BLOCK_D)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if seed_ptr is not None:
        delta = without_scale(delta, keep_scale)
    lse = load_lse(lse_ptr + head64 * tokens + token, row, live, EXACT)
    k_base = head_base(k_ptr, start, head, k_head, K_TOKEN, VECTOR)
    v_base = head_base(v_ptr, start, head, v_head, V_TOKEN, VECTOR)
    if bias_ptr is not None:
        query_offset = head64 * bias_head + sequence.to(tl.int64) * bias_batch + (first + row).to(tl.int64) * bias_query
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
        unit = (token + row).to(tl.int64) * HEADS + head
        if keep_ptr is not None:
            keep_base = keep_ptr + (head64 * tokens + token) * keep_row

    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if EXACT:
        total = tl.zeros((BLOCK_M,), tl.float32)
        rest = tl.zeros((BLOCK_M,), tl.float32)
        mean_key = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for offset in tl.range(0, length, BLOCK_N):
        key_live = column < length - offset
        if key_mask_ptr is not None:
            key_live = key_live & (tl.load(key_mask_ptr + start + offset + column, mask=key_live, other=0) != 0)
        k = load_rows(k_base, column, key_live, K_TOKEN, D, BLOCK_D)
        v = load_rows(v_base, column, key_live, V_TOKEN, D, BLOCK_D)
        scores = dot(q, tl.trans(k), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
        if key_mask_ptr is not None or offset + BLOCK_N > length:
            scores = tl.where(key_live[None, :], scores, float("-inf"))
        scores *= score_scale
        if bias_ptr is not None:
            key_offset = (offset + column).to(tl.int64) * bias_key
            mask = live[:, None] & key_live[None, :]
            scores += load_bias(bias_ptr, query_offset[:, None], key_offset[None, :], mask, EXACT)
        probs = exponential(scores, lse[:, None], EXACT)
        dprobs = dot(do, tl.trans(v), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
        if seed_ptr is not None:
            bits = keep_bits(seed, site, threshold, unit, offset, BLOCK_N)
            if keep_ptr is not None:
                store_keep(keep_base + offset // 8, row * keep_row, live, bits)
            dprobs = tl.where(unpack_columns(bits), dprobs, 0.0)
        dscores = probs * (dprobs - delta[:, None])
        dq = dot(dscores.to(k.dtype), k, dq, PRECISION)
        if EXACT:
            total += tl.sum(probs, 1)
            rest += tl.sum(dscores, 1)
            mean_key = dot(probs, k, mean_key, PRECISION)
        k_base += BLOCK_N * K_TOKEN
        v_base += BLOCK_N * V_TOKEN
    inverse = None
    if EXACT:
        # A row's dscores sum to 0. What they did sum to is the rounding of out and of delta, and where one key has all
        # the weight, so that dprobs and delta cancel, it would be all there is.
        inverse = inverse_sum(total)
        rest = rest * inverse
        delta += rest
        dq = (dq - rest[:, None] * mean_key) * inverse[:, None]
    if seed_ptr is not None:
        dq = dq * keep_scale
    store_stats(stats_ptr, tokens, head64, token + row, live, delta, lse, inverse, HEADS, EXACT)
    dq_base = head_base(dq_ptr, token, head, dq_head, DQ_TOKEN, VECTOR)
    store_rows(dq_base, row, live, dq * scale, DQ_TOKEN, D, BLOCK_D)


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["order_ptr"])
def backward_keys(
    do_ptr, q_ptr, k_ptr, v_ptr, stats_ptr, keep_ptr, dk_ptr, dv_ptr, cu_ptr, cumulative_ptr, order_ptr, bias_ptr,
    key_mask_ptr, seed_ptr, tokens, batch, longest, keep_row, do_head, q_head, k_head, v_head, dk_head, dv_head,
    bias_batch, bias_head, bias_query, bias_key, scale, score_scale, keep_scale, threshold, site,
    DO_TOKEN: tl.constexpr, Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr,
    DK_TOKEN: tl.constexpr, DV_TOKEN: tl.constexpr, VECTOR: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STATS_GATHERED: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N keys, walking the queries with scores transposed.

    STATS_GATHERED: lse and delta change hands between threads through shared memory. Where a thread holds a whole row
    of scores, as out of tensor memory, some Tritons would rather load them once for every column.

    A key that is not there or not seen has probabilities of exp(0 - lse), which may be infinite: they stay within its
    own row, whose gradients are set to 0 at the end, so that the loop need not mask them.
    """
    head = tl.program_id(0) % HEADS
    head64 = head.to(tl.int64)
    sequence, first = find_tile(tl.program_id(0) // HEADS, cumulative_ptr, order_ptr, batch, BLOCK_N)
    start, length = extent(sequence, cu_ptr, longest)
    if first >= length:
        return
    row = tl.arange(0, BLOCK_M)
    column = key_rows(BLOCK_N, seed_ptr is not None)
    live = column < length - first
    token = start + first
    key_live = live
    if key_mask_ptr is not None:
        key_live = key_live & (tl.load(key_mask_ptr + token + column, mask=live, other=0) != 0)
    k = load_rows(head_base(k_ptr, token, head, k_head, K_TOKEN, VECTOR), column, key_live, K_TOKEN, D, BLOCK_D)
    v = load_rows(head_base(v_ptr, token, head, v_head, V_TOKEN, VECTOR), column, key_live, V_TOKEN, D, BLOCK_D)
    q_base = head_base(q_ptr, start, head, q_head, Q_TOKEN, VECTOR)
    do_base = head_base(do_ptr, start, head, do_head, DO_TOKEN, VECTOR)
    delta_base = stats_ptr + head64 * tokens + start
    lse_base = stats_ptr + (head64 + HEADS) * tokens + start
    inverse_base = stats_ptr + (head64 + 2 * HEADS) * tokens + start
    if bias_ptr is not None:
        key_offset = head64 * bias_head + sequence.to(tl.int64) * bias_batch + (first + column).to(tl.int64) * bias_key
    if seed_ptr is not None:
        seed = tl.load(seed_ptr)
        if keep_ptr is not None:
            keep_base = keep_ptr + (head64 * tokens + start) * keep_row + first // 8

    dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for offset in tl.range(0, length, BLOCK_M):
        row_live = row < length - offset
        if keep_ptr is not None:
            packed = load_keep(keep_base, row * keep_row, row_live, BLOCK_N)
            keep_base += BLOCK_M * keep_row
        q = load_rows(q_base, row, row_live, Q_TOKEN, D, BLOCK_D)
        do = load_rows(do_base, row, row_live, DO_TOKEN, D, BLOCK_D)
        lse = tl.load(lse_base + row, mask=row_live, other=float("inf"))
        if STATS_GATHERED:
            lse = tl.gather(lse, row, 0)
        scores = dot(k, tl.trans(q), tl.zeros((BLOCK_N, BLOCK_M), tl.float32), PRECISION) * score_scale
        if bias_ptr is not None:
            query_offset = (offset + row).to(tl.int64) * bias_query
            mask = row_live[None, :] & key_live[:, None]
            scores += load_bias(bias_ptr, query_offset[None, :], key_offset[:, None], mask, EXACT)
        probs = exponential(scores, lse[None, :], EXACT)
        if EXACT:
            probs = probs * tl.load(inverse_base + row, mask=row_live, other=0.0)[None, :]
            inverse_base += BLOCK_M
        dprobs = dot(v, tl.trans(do), tl.zeros((BLOCK_N, BLOCK_M), tl.float32), PRECISION)
        if seed_ptr is not None:
            if keep_ptr is not None:
                keep = unpack_rows(packed)
            else:
                unit = (start + offset + row).to(tl.int64) * HEADS + head
                keep = keep_rows(seed, site, threshold, unit, first, BLOCK_N)
            dprobs = tl.where(keep, dprobs, 0.0)
            dv = dot(tl.where(keep, probs, 0.0).to(do.dtype), do, dv, PRECISION)
        else:
            dv = dot(probs.to(do.dtype), do, dv, PRECISION)
        delta = tl.load(delta_base + row, mask=row_live, other=0.0)
        if STATS_GATHERED:
            delta = tl.gather(delta, row, 0)
        dscores = probs * (dprobs - delta[None, :])
        dk = dot(dscores.to(q.dtype), q, dk, PRECISION)
        q_base += BLOCK_M * Q_TOKEN
        do_base += BLOCK_M * DO_TOKEN
        lse_base += BLOCK_M
        delta_base += BLOCK_M
    if seed_ptr is not None:
        dk = dk * keep_scale
        dv = dv * keep_scale
    if key_mask_ptr is not None:
        dk = tl.where(key_live[:, None], dk, 0.0)
        dv = tl.where(key_live[:, None], dv, 0.0)
    dk_base = head_base(dk_ptr, token, head, dk_head, DK_TOKEN, VECTOR)
    dv_base = head_base(dv_ptr, token, head, dv_head, DV_TOKEN, VECTOR)
    store_rows(dk_base, column, live, dk * scale, DK_TOKEN, D, BLOCK_D)
    store_rows(dv_base, column, live, dv, DV_TOKEN, D, BLOCK_D)


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    need_dbias: bool = False,
    deterministic: bool = True,
    dqkv: tuple[Tensor, Tensor, Tensor] | None = None,
    schedule: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of :func:`attention_forward`, whose arguments q .. site and results out and lse these are.

    They hold the numeric contract but for one case: 16 bits, a program that does not hold all keys of its rows, and in
    practically every row one key with all the weight, so that the other probabilities are below 2**-24. dq and dk are
    then 0 in truth and in eager PyTorch, whose delta is made of the very dprobs it is subtracted from. Here it is
    rowsum(dout * out), summed in another order, and what is left is float32's rounding, some 2**-24 of dout times v.
    float32 kernels take that out again by an eighth dot; for 16 bits it would buy gradients that vanish beside those
    of any row that has not stopped learning.

    Args:
        dout: ``[T, N, D]`` in q's dtype, of any strides with D contiguous.
        need_dbias: also return the gradient of ``bias``.
        deterministic: accepted so that callers need not know that both answers are the same kernels.
        dqkv: where to write dq, dk and dv, such as the views of one ``[T, 3, N, D]`` buffer; by default new tensors.
        schedule: from :func:`attention_schedule`.

    Returns:
        ``(dq, dk, dv, dbias)``: in q's dtype, and in bias's dtype and shape or None.

    Raises:
        ValueError: naming the argument, what it was and what is allowed.
    """
    if dqkv is None:
        dqkv = tuple(torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    dq, dk, dv = dqkv
    call = check_call(
        {"q": q, "k": k, "v": v, "dout": dout, "out": out, "dq": dq, "dk": dk, "dv": dv}, cu_seqlens, scale=scale,
        bias=bias, key_mask=key_mask, p=p, seed=seed, site=site, max_seqlen=max_seqlen, schedule=schedule,
    )  # fmt: skip
    if lse.shape != (call.heads, call.tokens) or lse.dtype != torch.float32 or not lse.is_contiguous():
        raise ValueError(f"lse must be contiguous float32 [{call.heads}, {call.tokens}], not {lse.dtype} {lse.shape}")
    if need_dbias and bias is None:
        raise ValueError("need_dbias asks for the gradient of a bias, and bias is None")
    dbias = None
    if call.tokens == 0 or call.heads == 0 or call.batch == 0:
        return dq, dk, dv, torch.zeros(bias.shape, dtype=bias.dtype, device=q.device) if need_dbias else None
    with on_device(q):
        kernels = plan(max_seqlen, call.head_dim, q.dtype, **call.planned).backward
    shared = {**call.arguments(), "scale": scale}
    stats = None
    if len(kernels) > 1 or need_dbias:
        stats = torch.empty((3 if call.exact else 2, *lse.shape), dtype=torch.float32, device=q.device)
    keep, keep_row = None, 0
    # two groups of 16 keys share its bytes
    packable = len(kernels) > 1 and all(chosen.blocks["BLOCK_N"] % 32 == 0 for chosen in kernels)
    if packable and call.dropout and max_seqlen <= _KEEP_UP_TO:
        keep_row = cdiv(max_seqlen, 128) * 16
        keep = torch.empty((call.heads, call.tokens, keep_row), dtype=torch.uint8, device=q.device)
    common = {"do_ptr": dout, "q_ptr": q, "k_ptr": k, "v_ptr": v}
    between = {"stats_ptr": stats, "keep_ptr": keep, "keep_row": keep_row, "cumulative_ptr": call.cumulative}
    with on_device(q):
        for chosen in kernels:
            grid = (chosen.programs(call.tokens, call.batch, call.heads),)
            launched = {**common, **shared, **chosen.blocks, **chosen.options}
            if chosen.kernel == "attention_backward_tile":
                backward_tile[grid](
                    o_ptr=out, lse_ptr=lse, dq_ptr=dq, dk_ptr=dk, dv_ptr=dv, stats_ptr=stats,
                    **strides(do=dout, q=q, k=k, v=v, o=out, dq=dq, dk=dk, dv=dv), **launched,
                )  # fmt: skip
            elif chosen.kernel == "attention_backward_queries":
                backward_queries[grid](
                    o_ptr=out, lse_ptr=lse, dq_ptr=dq,
                    **between, **strides(do=dout, q=q, k=k, v=v, o=out, dq=dq), **launched,
                )  # fmt: skip
            else:
                backward_keys[grid](
                    dk_ptr=dk, dv_ptr=dv, **between, **strides(do=dout, q=q, k=k, v=v, dk=dk, dv=dv), **launched
                )
        if need_dbias:
            dbias = bias_gradient(call, dout, q, k, v, stats)
    return dq, dk, dv, dbias
