"""The gradient of attention's additive bias: the gradient of the scores, summed over what the bias is shared by."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .attention_call import Call, strides
from .attention_tiles import exponential, extent, head_base, keep_columns, key_columns, load_bias, load_rows
from .common import cdiv, dot

_INTEGERS = [
    "tokens", "batch", "longest", "size", "pairs", "per_chunk", "do_head", "q_head", "k_head", "v_head",
     "threshold", "site",
]  # fmt: skip
_PROGRAMS = 512  # enough to fill a large GPU: the sum over what shares a bias is cut until there are about as many


@triton.jit(do_not_specialize=_INTEGERS, do_not_specialize_on_alignment=["order_ptr"])
def backward_bias(
    do_ptr, q_ptr, k_ptr, v_ptr, stats_ptr, dbias_ptr, cu_ptr, order_ptr, bias_ptr, key_mask_ptr, seed_ptr,
    tokens, batch, longest, size, pairs, per_chunk, do_head, q_head, k_head, v_head,
    bias_batch, bias_head, bias_query, bias_key, score_scale, keep_scale, threshold, site,
    DO_TOKEN: tl.constexpr, Q_TOKEN: tl.constexpr, K_TOKEN: tl.constexpr, V_TOKEN: tl.constexpr, VECTOR: tl.constexpr,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    BATCH_SHARED: tl.constexpr, HEAD_SHARED: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """One [BLOCK, BLOCK] tile of the gradient, summed in order over one chunk of the sequences and heads it serves."""
    tiles = tl.cdiv(size, BLOCK)
    tile = tl.program_id(0) % (tiles * tiles)
    owner = tl.program_id(0) // (tiles * tiles)  # bias batch * bias heads + bias head
    OWNER_HEADS: tl.constexpr = 1 if HEAD_SHARED else HEADS
    SHARING_HEADS: tl.constexpr = HEADS if HEAD_SHARED else 1
    query = (tile // tiles) * BLOCK + tl.arange(0, BLOCK)
    first = (tile % tiles) * BLOCK
    key = first + key_columns(BLOCK, seed_ptr is not None)
    query64, key64 = query.to(tl.int64), key.to(tl.int64)
    begin = tl.program_id(1) * per_chunk
    gradient = tl.zeros((BLOCK, BLOCK), tl.float32)
    for pair in tl.range(begin, tl.minimum(begin + per_chunk, pairs)):
        sequence = pair // SHARING_HEADS if BATCH_SHARED else owner // OWNER_HEADS
        head = pair % SHARING_HEADS if HEAD_SHARED else owner % OWNER_HEADS
        head64 = head.to(tl.int64)
        start, length = extent(sequence, cu_ptr, longest)
        live = query < length
        seen = key < length
        if key_mask_ptr is not None:
            seen = seen & (tl.load(key_mask_ptr + start + key, mask=seen, other=0) != 0)
        q = load_rows(head_base(q_ptr, start, head, q_head, Q_TOKEN, VECTOR), query64, live, Q_TOKEN, D, BLOCK_D)
        do = load_rows(head_base(do_ptr, start, head, do_head, DO_TOKEN, VECTOR), query64, live, DO_TOKEN, D, BLOCK_D)
        k = load_rows(head_base(k_ptr, start, head, k_head, K_TOKEN, VECTOR), key64, seen, K_TOKEN, D, BLOCK_D)
        v = load_rows(head_base(v_ptr, start, head, v_head, V_TOKEN, VECTOR), key64, seen, V_TOKEN, D, BLOCK_D)
        stats = stats_ptr + head64 * tokens + start + query
        plane = tokens.to(tl.int64) * HEADS
        delta = tl.load(stats, mask=live, other=0.0)
        lse = tl.load(stats + plane, mask=live, other=float("inf"))
        query_offset = head64 * bias_head + sequence.to(tl.int64) * bias_batch + query64 * bias_query
        key_offset = key64 * bias_key
        mask = live[:, None] & seen[None, :]
        scores = dot(q, tl.trans(k), tl.zeros((BLOCK, BLOCK), tl.float32), PRECISION) * score_scale
        scores += load_bias(bias_ptr, query_offset[:, None], key_offset[None, :], mask, EXACT)
        probs = tl.where(mask, exponential(scores, lse[:, None], EXACT), 0.0)
        if EXACT:
            probs = probs * tl.load(stats + 2 * plane, mask=live, other=0.0)[:, None]
        dprobs = dot(do, tl.trans(v), tl.zeros((BLOCK, BLOCK), tl.float32), PRECISION)
        if seed_ptr is not None:
            unit = (start + query).to(tl.int64) * HEADS + head
            keep = keep_columns(tl.load(seed_ptr), site, threshold, unit, first, BLOCK)
            dprobs = tl.where(keep, dprobs, 0.0)
        gradient += probs * (dprobs - delta[:, None])
    if seed_ptr is not None:
        gradient = gradient * keep_scale
    owners = tl.num_programs(0) // (tiles * tiles)
    place = (tl.program_id(1) * owners + owner).to(tl.int64) * size * size
    offset = query64[:, None] * size + key[None, :]
    tl.store(dbias_ptr + place + offset, gradient, mask=(query < size)[:, None] & (key < size)[None, :])


def bias_gradient(call: Call, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, stats: Tensor) -> Tensor:
    """dbias in ``call.bias``'s shape and dtype. stats: of each row, as :func:`attention_tiles.store_stats` leaves it.

    The sum over the sequences and heads that share a bias is cut into chunks, summed each by one program in a fixed
    order and then together by PyTorch: float32 throughout, no atomics, and no buffer of all scores.
    """
    bias = call.bias
    size = bias.shape[2]
    batch_shared, head_shared = bias.shape[0] == 1, bias.shape[1] == 1
    pairs = (call.batch if batch_shared else 1) * (call.heads if head_shared else 1)
    chosen = launch.parameters("attention_backward_bias", launch.architecture(), d=call.block_d, bytes=q.element_size())
    options = {"num_stages": 2, **launch.launch_options(chosen)}
    owners = bias.shape[0] * bias.shape[1]
    programs = cdiv(size, chosen["BLOCK"]) ** 2 * owners
    per_chunk = cdiv(pairs, min(pairs, max(1, _PROGRAMS // programs)))
    chunks = cdiv(pairs, per_chunk)
    partial = torch.empty((chunks, owners, size, size), dtype=torch.float32, device=q.device)
    backward_bias[(programs, chunks)](
        do_ptr=dout, q_ptr=q, k_ptr=k, v_ptr=v, stats_ptr=stats, dbias_ptr=partial,
        **strides(do=dout, q=q, k=k, v=v), **call.arguments(), size=size, pairs=pairs, per_chunk=per_chunk,
        BATCH_SHARED=batch_shared, HEAD_SHARED=head_shared, BLOCK=chosen["BLOCK"], **options,
    )  # fmt: skip
    total = partial[0] if chunks == 1 else partial.sum(0)
    return total.view(bias.shape[0], bias.shape[1], size, size).to(bias.dtype)
