"""Pieces of the attention kernels: finding a program's work, moving tiles, bias and dropout for a tile of scores.

T tokens, B sequences, N heads, D head dim. All functions run inside kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LOG2E


@triton.jit
def find_tile(slot, cumulative_ptr, order_ptr, batch, BLOCK: tl.constexpr):
    """The sequence that owns a slot, and the first row of the slot's tile within that sequence.

    The b-th sequence of the schedule owns the slots from ``cumulative[b] // BLOCK + b`` up to that of b + 1: never
    fewer than its tiles need and at most one more. So T // BLOCK + B slots serve any batch, and a program finds its
    place by bisection: no list, no prefix sum of tiles, nothing for the host to wait for.
    """
    low = slot * 0
    high = low + batch
    while high - low > 1:
        middle = (low + high) // 2
        first = tl.load(cumulative_ptr + middle) // BLOCK + middle
        low = tl.where(first <= slot, middle, low)
        high = tl.where(first <= slot, high, middle)
    first = tl.load(cumulative_ptr + low) // BLOCK + low
    sequence = low
    if order_ptr is not None:
        sequence = tl.load(order_ptr + low)
    return sequence, (slot - first) * BLOCK


@triton.jit
def head_base(ptr, start, head, HEAD, TOKEN: tl.constexpr, VECTOR: tl.constexpr):
    """Where one head of row ``start`` begins. HEAD comes divided by VECTOR: the product is then known to be aligned."""
    return ptr + start.to(tl.int64) * TOKEN + head.to(tl.int64) * (HEAD * VECTOR)


@triton.jit
def tile_offsets(row, TOKEN: tl.constexpr, BLOCK_D: tl.constexpr):
    """Element offsets of [rows, BLOCK_D]. TOKEN, the row stride, is a constant so that they fold into the loads."""
    if TOKEN >= 2**24:  # 128 rows would pass 2**31 elements
        row = row.to(tl.int64)
    return row[:, None] * TOKEN + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def tile_mask(live, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] mask of live rows and columns below D (padding of a head dim that is no power of two)."""
    mask = live[:, None]
    if BLOCK_D != D:
        mask = mask & (tl.arange(0, BLOCK_D) < D)[None, :]
    return mask


@triton.jit
def load_rows(base, row, live, TOKEN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] tile of one head; dead rows and columns beyond D are zero whatever memory holds there."""
    return tl.load(base + tile_offsets(row, TOKEN, BLOCK_D), mask=tile_mask(live, D, BLOCK_D), other=0.0)


@triton.jit
def store_rows(base, row, live, value, TOKEN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Stores a [rows, BLOCK_D] tile of one head in the pointer's dtype; dead rows and columns beyond D are left."""
    value = value.to(base.dtype.element_ty)
    tl.store(base + tile_offsets(row, TOKEN, BLOCK_D), value, mask=tile_mask(live, D, BLOCK_D))


@triton.jit
def load_lse(base, row, live):
    """lse in log2 units; +inf for dead rows and rows that saw no key, so that their probabilities come out as 0."""
    lse = tl.load(base + row, mask=live, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)


@triton.jit
def load_bias(base, query_offset, key_offset, mask):
    """Additive bias in log2 units. query_offset, key_offset: int64 offsets that broadcast to the tile of scores.

    Anything at or below half the dtype's lowest number hides, as in scaled_masked_softmax: masks are written with
    -inf, with the lowest number, and with sums of the two; a row of either sees no key.
    """
    bias = tl.load(base + query_offset + key_offset, mask=mask, other=0.0)
    if bias.dtype == tl.float16:
        hidden = -32752.0
    elif bias.dtype == tl.bfloat16:
        hidden = -1.6947656946257677e38
    else:
        hidden = -1.7014117331926443e38
    bias = bias.to(tl.float32)
    return tl.where(bias <= hidden, float("-inf"), bias * LOG2E)


@triton.jit
def _philox(seed, c0, c1, c2):
    """Philox4x32-10 of counter (c0, c1, c2, 0), uint32 that broadcast; key seed, an int64 scalar. Four uint32 tiles.

    One widening multiply gives both halves of each product (``tl.philox`` asks for them apart), and the counters that
    are equal along a row or everywhere stay a column or a scalar until a round mixes them.
    """
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c3 = c2 * 0
    for _ in tl.static_range(10):
        first = c0.to(tl.uint64) * 0xD2511F53
        second = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = second.to(tl.uint32)
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = first.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


# Philox makes four words at once, for four adjacent keys: a thread should hold all four. The accumulator of a matrix
# instruction gives it columns 2t, 2t + 1, 2t + 8, 2t + 9 of every 16 (t: lane % 4), or rows l and l + 8 of every 16
# (l: lane // 4). Softmax does not care for the order of its keys, so with dropout they are loaded in one that makes
# those columns four adjacent keys, and those rows two.


@triton.jit
def key_columns(BLOCK: tl.constexpr, DROPOUT: tl.constexpr):
    """Which key of its block each column of a tile of scores stands for: int32 [BLOCK]."""
    index = tl.arange(0, BLOCK)
    if DROPOUT:  # 16g + 8h + 2t + b holds key 16g + 4t + 2h + b
        index = (index & ~15) | ((index & 6) << 1) | ((index & 8) >> 2) | (index & 1)
    return index


@triton.jit
def key_rows(BLOCK: tl.constexpr, DROPOUT: tl.constexpr):
    """Which key of its block each row of a tile of transposed scores stands for: int32 [BLOCK]."""
    index = tl.arange(0, BLOCK)
    if DROPOUT:  # 16g + 8h + l holds key 16g + 2l + h
        index = (index & ~15) | ((index & 7) << 1) | ((index & 8) >> 3)
    return index


@triton.jit
def keep_columns(seed, site, threshold, unit, first, BLOCK: tl.constexpr):
    """What dropout keeps of the scores of [rows] queries and BLOCK keys from ``first`` on: int1 [rows, BLOCK].

    The keys lie as :func:`key_columns` says. unit: int64 [rows], packed query row * N + head: the element index is
    unit * 65536 + key, its group of four unit * 16384 + key // 4. first: a multiple of 16.
    """
    sixteen = tl.arange(0, BLOCK // 16)[None, :, None, None, None]
    h = tl.arange(0, 2)[None, None, :, None, None]
    t = tl.arange(0, 4)[None, None, None, :, None]
    b = tl.arange(0, 2)[None, None, None, None, :]
    keep = _keep(seed, site, threshold, unit[:, None, None, None, None], first // 4 + 4 * sixteen + t, 2 * h + b)
    return tl.reshape(keep, (keep.shape[0], BLOCK))


@triton.jit
def keep_rows(seed, site, threshold, unit, first, BLOCK: tl.constexpr):
    """:func:`keep_columns` for transposed scores: int1 [BLOCK, rows], the keys as :func:`key_rows` says."""
    sixteen = tl.arange(0, BLOCK // 16)[:, None, None, None, None]
    h = tl.arange(0, 2)[None, :, None, None, None]
    t = tl.arange(0, 4)[None, None, :, None, None]  # l // 2
    odd = tl.arange(0, 2)[None, None, None, :, None]  # l % 2
    keep = _keep(seed, site, threshold, unit[None, None, None, None, :], first // 4 + 4 * sixteen + t, 2 * odd + h)
    return tl.reshape(keep, (BLOCK, keep.shape[4]))


@triton.jit
def _keep(seed, site, threshold, unit, quad, word):
    """Whether ``word`` (0 .. 3) of group unit * 16384 + quad keeps its element. All broadcast."""
    group = (unit << 14).to(tl.uint32) | quad.to(tl.uint32)
    w0, w1, w2, w3 = _philox(seed, group, (unit >> 18).to(tl.uint32), site.to(tl.uint32))
    limit = threshold.to(tl.uint32, bitcast=True)
    # One value, not four, so that the compiler moves the whole of Philox into the layout of the scores: converting
    # four would cost more. The shifts are by constants of a thread and vanish.
    bits = (w0 >= limit).to(tl.int32) | ((w1 >= limit).to(tl.int32) << 1)
    bits = bits | ((w2 >= limit).to(tl.int32) << 2) | ((w3 >= limit).to(tl.int32) << 3)
    return ((bits >> word) & 1) != 0


@triton.jit
def whole_sequences(index, item, batch, cu_ptr, order_ptr, SLOT: tl.constexpr, GROUP: tl.constexpr):
    """Rows ``index`` of a tile that holds GROUP sequences, SLOT rows each: (origin, row, position, live, sequence).

    Each is packed row origin + row, its sequence's position, and real where live. For GROUP = 1 origin and sequence
    are scalars, so that an address is one base and constants; else sequence is [rows] and origin 0.
    """
    if GROUP == 1:
        sequence = item
        if order_ptr is not None:
            sequence = tl.load(order_ptr + item)
        origin = tl.load(cu_ptr + sequence)
        live = index < tl.load(cu_ptr + sequence + 1) - origin
        position = index
        row = index
    else:
        sequence = item * GROUP + index // SLOT
        real = sequence < batch
        if order_ptr is not None:
            sequence = tl.load(order_ptr + sequence, mask=real, other=0)
        start = tl.load(cu_ptr + sequence, mask=real, other=0)
        position = index % SLOT
        live = position < tl.load(cu_ptr + sequence + 1, mask=real, other=0) - start
        origin = item * 0
        row = (start + position).to(tl.int64)
    return origin, row, position, live, sequence
