"""Pieces of the attention kernels: finding a program's work, moving tiles, bias and dropout for a tile of scores.

T tokens, B sequences, N heads, D head dim. All functions run inside kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LN2, LOG2E, dot


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
    return ptr + start.to(tl.int64) * TOKEN + head.to(tl.int64) * HEAD * VECTOR


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


# A 16-bit kernel keeps scores in log2 units: scale, subtraction and exp2 are then two instructions an element. EXACT,
# which float32 asks for, keeps them in natural units and rounds where eager PyTorch does, no score times log2(e). lse,
# one float32, is still rounded by up to 2**-24 of itself, which no probability of its row escapes: EXACT backwards
# divide by the sum of the probabilities that they recompute.


@triton.jit
def exponential(scores, reference, EXACT: tl.constexpr):
    """exp(scores - reference), both in the kernel's units."""
    power = scores - reference
    if EXACT:
        power = power * LOG2E
    return tl.exp2(power)


@triton.jit
def natural_lse(top, total, EXACT: tl.constexpr):
    """top + log(total), top in the kernel's units, as a natural logarithm; -inf for a row that saw no key."""
    log = tl.log2(tl.where(total == 0.0, 1.0, total))
    lse = top + log * LN2 if EXACT else (top + log) * LN2
    return tl.where(total == 0.0, float("-inf"), lse)


@triton.jit
def load_lse(base, row, live, EXACT: tl.constexpr):
    """lse in the kernel's units; +inf for dead rows and rows that saw no key: their probabilities come out as 0."""
    lse = tl.load(base + row, mask=live, other=float("inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    if not EXACT:
        lse = lse * LOG2E
    return lse


@triton.jit
def inverse_sum(total):
    """1 / total, and 1 for a row that saw no key."""
    return 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def store_stats(base, tokens, head64, row, live, delta, lse, inverse, HEADS: tl.constexpr, EXACT: tl.constexpr):
    """Leaves delta, lse and, if EXACT, the inverse sum of rows ``row`` in ``stats`` [2 or 3, N, T]."""
    place = base + head64 * tokens + row
    plane = tokens.to(tl.int64) * HEADS
    tl.store(place, delta, mask=live)
    tl.store(place + plane, lse, mask=live)
    if EXACT:
        tl.store(place + 2 * plane, inverse, mask=live)


@triton.jit
def load_bias(base, query_offset, key_offset, mask, EXACT: tl.constexpr):
    """Additive bias in the kernel's units. query_offset, key_offset: int64 that broadcast to the tile of scores.

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
    bias = tl.where(bias <= hidden, float("-inf"), bias)
    if not EXACT:
        bias = bias * LOG2E
    return bias


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
    return unpack_columns(keep_bits(seed, site, threshold, unit, first, BLOCK))


@triton.jit
def keep_bits(seed, site, threshold, unit, first, BLOCK: tl.constexpr):
    """:func:`keep_columns` as four bits for each group of four keys: int32 [rows, BLOCK / 16, 1, 4, 1]."""
    sixteen = tl.arange(0, BLOCK // 16)[None, :, None, None, None]
    t = tl.arange(0, 4)[None, None, None, :, None]
    return _keep_bits(seed, site, threshold, unit[:, None, None, None, None], first // 4 + 4 * sixteen + t)


@triton.jit
def unpack_columns(bits):
    """int1 [rows, BLOCK] of :func:`keep_bits`. The shifts are by constants of a thread and vanish."""
    h = tl.arange(0, 2)[None, None, :, None, None]
    b = tl.arange(0, 2)[None, None, None, None, :]
    return tl.reshape((bits >> (2 * h + b)) & 1, (bits.shape[0], 16 * bits.shape[1])) != 0


@triton.jit
def keep_rows(seed, site, threshold, unit, first, BLOCK: tl.constexpr):
    """:func:`keep_columns` for transposed scores: int1 [BLOCK, rows], the keys as :func:`key_rows` says."""
    sixteen = tl.arange(0, BLOCK // 16)[:, None, None, None, None]
    h = tl.arange(0, 2)[None, :, None, None, None]
    t = tl.arange(0, 4)[None, None, :, None, None]  # l // 2
    odd = tl.arange(0, 2)[None, None, None, :, None]  # l % 2
    bits = _keep_bits(seed, site, threshold, unit[None, None, None, None, :], first // 4 + 4 * sixteen + t)
    return tl.reshape((bits >> (2 * odd + h)) & 1, (BLOCK, bits.shape[4])) != 0


@triton.jit
def _keep_bits(seed, site, threshold, unit, quad):
    """Four keep bits of group unit * 16384 + quad, the two broadcast: int32."""
    group = (unit << 14).to(tl.uint32) | quad.to(tl.uint32)
    w0, w1, w2, w3 = _philox(seed, group, (unit >> 18).to(tl.uint32), site.to(tl.uint32))
    limit = threshold.to(tl.uint32, bitcast=True)
    # One value, not four, so that the compiler moves the whole of Philox into the layout of the scores: converting
    # four would cost more.
    bits = (w0 >= limit).to(tl.int32) | ((w1 >= limit).to(tl.int32) << 1)
    return bits | ((w2 >= limit).to(tl.int32) << 2) | ((w3 >= limit).to(tl.int32) << 3)


@triton.jit
def store_keep(base, row, live, bits):
    """Stores :func:`keep_bits` of a block at ``base``, two groups of four to the byte: [rows, BLOCK / 8] of W bytes."""
    PAIRS: tl.constexpr = bits.shape[1] // 2
    bits = tl.reshape(bits, (bits.shape[0], PAIRS, 2, 4))
    packed = tl.sum(bits << (4 * tl.arange(0, 2))[None, None, :, None], 2)
    column = 4 * tl.arange(0, PAIRS)[None, :, None] + tl.arange(0, 4)[None, None, :]
    tl.store(base + row[:, None, None] + column, packed.to(tl.uint8), mask=live[:, None, None])


@triton.jit
def load_keep(base, row, live, BLOCK: tl.constexpr):
    """What :func:`store_keep` left of BLOCK keys and [rows] queries: uint8 [BLOCK / 32, 1, 1, 4, 1, rows]."""
    pair = tl.arange(0, BLOCK // 32)[:, None, None, None, None, None]
    t = tl.arange(0, 4)[None, None, None, :, None, None]
    place = base + row[None, None, None, None, None, :] + 4 * pair + t
    return tl.load(place, mask=live[None, None, None, None, None, :], other=0)


@triton.jit
def unpack_rows(packed):
    """:func:`keep_rows` from what :func:`load_keep` loaded: int1 [BLOCK, rows]."""
    parity = tl.arange(0, 2)[None, :, None, None, None, None]
    h = tl.arange(0, 2)[None, None, :, None, None, None]
    odd = tl.arange(0, 2)[None, None, None, None, :, None]
    keep = (packed.to(tl.int32) >> (4 * parity + 2 * odd + h)) & 1
    return tl.reshape(keep, (32 * packed.shape[0], packed.shape[5])) != 0


@triton.jit
def extent(sequence, cu_ptr, longest, real=None):
    """A sequence's first packed row and its length, at most ``longest``: what lies beyond has no place in a bias or in
    dropout's bits, and no program in some plans, so that it is not touched in any."""
    start = tl.load(cu_ptr + sequence, mask=real, other=None if real is None else 0)
    end = tl.load(cu_ptr + sequence + 1, mask=real, other=None if real is None else 0)
    return start, tl.minimum(end - start, longest)


@triton.jit
def whole_sequences(index, item, batch, longest, cu_ptr, order_ptr, SLOT: tl.constexpr, GROUP: tl.constexpr):
    """Rows ``index`` of a tile that holds GROUP sequences, SLOT rows each: (origin, row, position, length, sequence).

    Each is packed row origin + row and its sequence's position, real where position < length. For GROUP = 1 origin,
    length and sequence are scalars, so that an address is one base and constants; else all are [rows] and origin 0.
    """
    if GROUP == 1:
        sequence = item
        if order_ptr is not None:
            sequence = tl.load(order_ptr + item)
        origin, length = extent(sequence, cu_ptr, longest)
        position = index
        row = index
    else:
        sequence = item * GROUP + index // SLOT
        real = sequence < batch
        if order_ptr is not None:
            sequence = tl.load(order_ptr + sequence, mask=real, other=0)
        start, length = extent(sequence, cu_ptr, longest, real)
        position = index % SLOT
        origin = item * 0
        row = (start + position).to(tl.int64)
    return origin, row, position, length, sequence


@triton.jit
def visible_keys(column, seen, start, length, key_mask_ptr, GROUP: tl.constexpr):
    """Which keys the rows of a tile of whole sequences see; broadcasts to its scores, [rows, keys / GROUP].

    column: key position of each column. seen: [keys], for GROUP = 1 the answer. start, length: of each row's sequence.
    """
    if GROUP == 1:
        visible = seen[None, :]
    else:
        visible = column[None, :] < length[:, None]
        if key_mask_ptr is not None:
            place = start[:, None] + column[None, :]
            visible = visible & (tl.load(key_mask_ptr + place, mask=visible, other=0) != 0)
    return visible


# Dots within each of GROUP slots of a tile. They are batched dots, not one dot and a block-diagonal mask: a masked
# probability of 0 would still carry a NaN of one sequence into the next.


@triton.jit
def dot_rows(a, b, GROUP: tl.constexpr, PRECISION: tl.constexpr):
    """a b^T of each slot: a [rows, D], b [keys, D] -> [rows, keys / GROUP]."""
    if GROUP == 1:
        out = dot(a, tl.trans(b), tl.zeros((a.shape[0], b.shape[0]), tl.float32), PRECISION)
    else:
        SLOT: tl.constexpr = a.shape[0] // GROUP
        a = tl.reshape(a, (GROUP, SLOT, a.shape[1]))
        b = tl.permute(tl.reshape(b, (GROUP, SLOT, b.shape[1])), (0, 2, 1))
        out = tl.reshape(dot(a, b, tl.zeros((GROUP, SLOT, SLOT), tl.float32), PRECISION), (GROUP * SLOT, SLOT))
    return out


@triton.jit
def dot_keys(a, b, acc, GROUP: tl.constexpr, PRECISION: tl.constexpr):
    """acc + a b of each slot: a [rows, keys / GROUP], b [keys, D] -> [rows, D]."""
    if GROUP == 1:
        out = dot(a, b, acc, PRECISION)
    else:
        SLOT: tl.constexpr = a.shape[1]
        a = tl.reshape(a, (GROUP, SLOT, SLOT))
        acc = tl.reshape(acc, (GROUP, SLOT, b.shape[1]))
        out = dot(a, tl.reshape(b, (GROUP, SLOT, b.shape[1])), acc, PRECISION)
        out = tl.reshape(out, (GROUP * SLOT, b.shape[1]))
    return out


@triton.jit
def dot_queries(a, b, GROUP: tl.constexpr, PRECISION: tl.constexpr):
    """a^T b of each slot, for a [rows, keys / GROUP] that was computed and b [rows, D] that was loaded: [keys, D].

    Hopper's matrix instruction takes its right operand from shared memory but a computed left one from registers. As
    (b^T a)^T both operands are read where they lie, if D fills the 64 rows of an instruction.
    """
    if GROUP > 1:
        SLOT: tl.constexpr = a.shape[1]
        a = tl.permute(tl.reshape(a, (GROUP, SLOT, SLOT)), (0, 2, 1))
        b = tl.reshape(b, (GROUP, SLOT, b.shape[1]))
        out = tl.reshape(
            dot(a, b, tl.zeros((GROUP, SLOT, b.shape[2]), tl.float32), PRECISION), (GROUP * SLOT, b.shape[2])
        )
    elif b.shape[1] >= 64:
        out = tl.trans(dot(tl.trans(b), a, tl.zeros((b.shape[1], a.shape[1]), tl.float32), PRECISION))
    else:
        out = dot(tl.trans(a), b, tl.zeros((a.shape[1], b.shape[1]), tl.float32), PRECISION)
    return out
