"""What every kernel shares: dots, dropout words, activation math, and the few facts a launcher asks of its device.

Kernels load in the tensor's dtype, convert to float32 at once and compute there. The Triton interpreter
(TRITON_INTERPRET=1) is an oracle for float32 and float16 only: its bfloat16 is raw bits in dots, truncation in stores.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
import triton.language as tl


def interpreting() -> bool:
    """True when kernels run in Triton's interpreter, on CPU tensors. Fixed when a kernel's module is imported."""
    return bool(triton.knobs.runtime.interpret)


INTERPRETING = tl.constexpr(interpreting())
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# --- host side ---


def cdiv(a: int, b: int) -> int:
    """Ceiling of a / b for non-negative a and positive b."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()


def dot_precision(dtype: torch.dtype) -> str:
    """``input_precision`` for :func:`dot`: TF32 for float32 only where the user's torch setting allows it.

    Read on every launch, so that ``torch.backends.cuda.matmul.allow_tf32`` and ``torch.set_float32_matmul_precision``
    act on these kernels as they act on torch's own. 16-bit dots are exact products and ignore it.
    """
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def dropout_threshold(p: float) -> int:
    """The uint32 below which a random word drops its element, as the bits of an int32.

    ``round(p * 2**32)`` clamped to 32 bits. A kernel argument's type follows its value, so an unsigned word would
    compile one kernel for p < 0.5 and another above; the signed bits are an int32 for every p.
    """
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must be a probability in [0, 1], not {p}")
    word = min(round(p * 2**32), 2**32 - 1)
    return word - 2**32 if word >= 2**31 else word


def dropout_scale(p: float) -> float:
    """What kept elements are multiplied by: 1 / (1 - p), and 0 where p = 1 keeps none."""
    return 0.0 if p >= 1.0 else 1.0 / (1.0 - p)


@functools.cache
def _cuda_multiprocessors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 2 elsewhere, so that the interpreter meets several programs."""
    if device.type != "cuda":
        return 2
    return _cuda_multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


def on_device(tensor: torch.Tensor) -> AbstractContextManager:
    """Makes the tensor's GPU current for a launch: Triton launches on the current device, whatever its arguments."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


class Dropout(NamedTuple):
    """What a kernel takes of dropout: no seed and neutral numbers where p is 0, which compiles it away."""

    seed: torch.Tensor | None
    site: int
    threshold: int
    scale: float

    @classmethod
    def of(cls, p: float, seed: torch.Tensor | None, site: int) -> Dropout:
        """Checks the arguments of an op. ``seed``: int64, one element, on the device; needed where p > 0."""
        threshold = dropout_threshold(p)
        if p == 0:
            return NO_DROPOUT
        if seed is None or seed.dtype != torch.int64 or seed.numel() != 1:
            given = "None" if seed is None else f"{seed.dtype} of {seed.numel()} elements"
            raise ValueError(f"seed must be an int64 tensor of one element where p > 0, not {given}")
        return cls(seed, site, threshold, dropout_scale(p))


NO_DROPOUT = Dropout(None, 0, 0, 1.0)

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def require_kernel_dtype(name: str, tensor: torch.Tensor | None) -> None:
    """Kernels compute in float32: float64 would be rounded without a word, integers make no sense."""
    if tensor is not None and tensor.dtype not in KERNEL_DTYPES:
        raise TypeError(f"{name} must be float32, float16 or bfloat16 for a Triton kernel, not {tensor.dtype}")


def contiguous_rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """The tensor, copied only if its last dimension is not contiguous: kernels take rows of any stride."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def row_stride(tensor: torch.Tensor | None) -> int:
    """Elements from one row of [T, H] to the next; 0 for no tensor."""
    return 0 if tensor is None else tensor.stride(0)


def packed_rows(*tensors: torch.Tensor | None) -> bool:
    """Whether no [T, H] tensor has gaps between rows: H is then the stride, and known when the kernel is compiled."""
    return all(t is None or t.stride(0) == t.shape[1] for t in tensors)


class RowPlan(NamedTuple):
    """A program has ``rows`` rows of [T, H] as ``chunks`` tiles of ``cols`` columns, a thread ``vector`` of each."""

    cols: int
    chunks: int
    rows: int
    vector: int
    num_warps: int


def row_plan(hidden: int, itemsize: int, values: int, num_warps: int = 4) -> RowPlan:
    """Cut rows of ``hidden`` elements so that a thread holds about ``values`` of a row, and no more if it can be.

    Of those cuts, the one that covers the fewest columns beyond H; then the one that fills ``values`` best, because
    narrow chunks keep a row within few warps; then the widest vectors. ``itemsize`` is the widest tensor's: a thread
    then holds the same columns of every tensor, and no tile changes hands between load and store.
    """

    def cost(cut: tuple[int, int]) -> tuple[int, int, int]:
        cols, vector = cut
        held = cdiv(hidden, cols) * vector
        return cdiv(hidden, cols) * cols, abs(values - held), -vector

    widest = max(next_power_of_2(hidden), 16)
    cuts = [
        (cols, vector)
        for vector in (16 // itemsize, 8 // itemsize)
        for cols in (widest >> i for i in range(6))
        if vector >= 4 and 8 * vector <= cols <= 512 * vector and cdiv(hidden, cols) * vector <= values
    ]
    # where nothing fits: 16 warps for a row, as many values as it takes, and narrow vectors to need few at a time
    cols, vector = min(cuts, key=cost) if cuts else (min(widest, 2048), 4)
    num_warps = max(num_warps, cols // (32 * vector))
    return RowPlan(cols, cdiv(hidden, cols), max(1, num_warps * 32 * vector // cols), vector, num_warps)


# --- inside kernels ---


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. PRECISION comes from :func:`dot_precision`."""
    if INTERPRETING:
        # numpy would multiply 16-bit operands in 16 bits (and bfloat16 as integers), and in 32 its BLAS would sum in an
        # order that depends on a row's place in its tile, where a GPU gives the same rows the same bits
        out = acc + tl.dot(a.to(tl.float64), b.to(tl.float64)).to(tl.float32)
    else:
        out = tl.dot(a, b, acc, input_precision=PRECISION)
    return out


@triton.jit
def _multiply_wide(a, B: tl.constexpr):
    """High and low words of a uint32 tile times a constant: one wide multiply, where umulhi and mul are two."""
    product = a.to(tl.uint64) * tl.full((), B, tl.uint64)
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox_words(seed, site, group):
    """The four uint32 words of Philox4x32-10 that serve elements 4 * group .. 4 * group + 3.

    Salmon et al. (2011). seed: int64 scalar (a value, already loaded), the key. site: int32 scalar, which the kernel
    lists in ``do_not_specialize`` (a specialised 1 is no tensor). group: int64 tile of element index >> 2.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = group.to(tl.uint32)
    c1 = (group >> 32).to(tl.uint32)
    c2 = site.to(tl.uint32)
    c3 = tl.full((), 0, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = _multiply_wide(c0, 0xD2511F53)
        high2, low2 = _multiply_wide(c2, 0xCD9E8D57)
        c0 = high2 ^ c1 ^ k0
        c1 = low2
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 = tl.add(k0, tl.full((), 0x9E3779B9, tl.uint32), sanitize_overflow=False)
        k1 = tl.add(k1, tl.full((), 0xBB67AE85, tl.uint32), sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def philox_keep(seed, site, element, threshold):
    """Which elements dropout keeps: an int1 tile like element (int64 indices).

    One Philox call per element; where 4 adjacent columns share a word group, :func:`philox_keep4` costs a quarter.
    threshold: int32 scalar from :func:`dropout_threshold`.
    """
    w0, w1, w2, w3 = philox_words(seed, site, element >> 2)
    lane = (element & 3).to(tl.int32)
    word = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
    return word >= threshold.to(tl.uint32, bitcast=True)


@triton.jit
def philox_keep4(seed, site, group, threshold):
    """:func:`philox_keep` for whole groups: [R, C] int64 indices of groups -> [R, 4 * C] int1, columns adjacent.

    ``group[r, c]`` is element[r, 4 * c] >> 2, which needs element[r, 0] to be a multiple of 4. For tiles of which a
    thread holds 4 adjacent columns: joining then moves nothing between threads.
    """
    w0, w1, w2, w3 = philox_words(seed, site, group)
    limit = threshold.to(tl.uint32, bitcast=True)
    # a join's operands lie on a new minor axis: column bits from the first join to the last are 1, 0
    even = tl.join(w0 >= limit, w2 >= limit)
    odd = tl.join(w1 >= limit, w3 >= limit)
    return tl.reshape(tl.join(even, odd), (group.shape[0], group.shape[1] * 4))


@triton.jit
def philox_keep8(seed, site, group, threshold):
    """:func:`philox_keep4` of the group pairs (group, group + 1): [R, C] -> [R, 8 * C], ``group[r, c + 1]`` two on.

    For tiles of which a thread holds 8 adjacent columns, 16 bytes of a 16-bit dtype.
    """
    a0, a1, a2, a3 = philox_words(seed, site, group)
    b0, b1, b2, b3 = philox_words(seed, site, group + 1)
    limit = threshold.to(tl.uint32, bitcast=True)
    even = tl.join(tl.join(a0 >= limit, b0 >= limit), tl.join(a2 >= limit, b2 >= limit))
    odd = tl.join(tl.join(a1 >= limit, b1 >= limit), tl.join(a3 >= limit, b3 >= limit))
    return tl.reshape(tl.join(even, odd), (group.shape[0], group.shape[1] * 8))


@triton.jit
def reciprocal(x):
    """1 / x to the last bit or so: one instruction where a float32 division is eight (it also scales huge operands)."""
    if INTERPRETING:
        out = 1.0 / x
    else:
        out = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return out


@triton.jit
def _half_erfc_and_exp(x):
    """0.5 * erfc(|x| / sqrt(2)) within 8e-8 absolute, and exp(-x * x / 2), which both GELU and its slope need.

    Abramowitz and Stegun (1964), 7.1.26, with its halves and square roots folded into the constants.
    """
    t = reciprocal(1.0 + 0.231641888 * tl.abs(x))
    e = tl.exp2(x * x * (-0.5 * LOG2E))
    poly = (((0.5307027145 * t - 0.7265760135) * t + 0.7107068705) * t - 0.142248368) * t + 0.127414796
    return poly * t * e, e


@triton.jit
def _tanh_gate(x):
    """s = sigmoid(2 u) = (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), and 1 - s without cancellation."""
    # the largest power whose reciprocal is normal: beyond it s is 0 to float32 and e * s must stay 1
    e = tl.exp2(tl.minimum(x * (-2.302208198 - 0.1029432396 * x * x), 126.0))
    s = reciprocal(1.0 + e)
    return s, e * s


@triton.jit
def gelu(x, APPROXIMATE: tl.constexpr, FAST: tl.constexpr):
    """GELU of a float32 tile. APPROXIMATE as torch's: "none" is erf, "tanh" Google's formula.

    FAST: erf to 1.5e-7 rather than the last bit, enough for any 16-bit result at half the instructions. A 16-bit GELU
    moves 4 bytes an element, which leaves about 28 instructions for it; with the division and erf it would need 40.
    """
    if APPROXIMATE == "tanh":
        gate, _ = _tanh_gate(x)
        out = x * gate
    elif FAST:
        tail, _ = _half_erfc_and_exp(x)
        out = tl.maximum(x, 0.0) - tl.abs(x) * tail
    else:
        out = x * (0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476))
    return out


@triton.jit
def gelu_and_grad(x, APPROXIMATE: tl.constexpr, FAST: tl.constexpr):
    """(gelu(x), gelu'(x)) of a float32 tile; the arguments are :func:`gelu`'s."""
    if APPROXIMATE == "tanh":
        gate, rest = _tanh_gate(x)
        out = x * gate
        grad = gate + out * rest * (1.5957691216 + 0.2140644540 * x * x)
    else:
        if FAST:
            tail, e = _half_erfc_and_exp(x)
            cdf = tl.where(x < 0, tail, 1.0 - tail)
        else:
            e = tl.exp2(x * x * (-0.5 * LOG2E))
            cdf = 0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476)
        out = x * cdf
        grad = cdf + 0.3989422804014327 * x * e
    return out, grad


# --- the second stage of column sums ---


@triton.jit(do_not_specialize=["programs"])
def _column_sums_kernel(partials, out0, out1, out2, programs, H: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    plane = tl.program_id(1)
    col = tl.program_id(0) * COLS + tl.arange(0, COLS)
    row = tl.arange(0, ROWS)[:, None]
    source = partials + plane.to(tl.int64) * programs * H + col[None, :]
    total = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, programs, ROWS):
        total += tl.load(source + (start + row) * H, (start + row < programs) & (col < H)[None, :], 0.0)
    result = tl.sum(total, 0)
    if plane == 0:
        tl.store(out0 + col, result, col < H)
    elif plane == 1:
        tl.store(out1 + col, result, col < H)
    else:
        tl.store(out2 + col, result, col < H)


def column_sums(partials: torch.Tensor, outs: list[torch.Tensor]) -> None:
    """outs[s][h] = sum over p of partials[s, p, h] (float32 [1 to 3, programs, H]), always in the same order."""
    planes, programs, hidden = partials.shape
    out0, out1, out2 = outs + outs[:1] * (3 - planes)
    grid = (cdiv(hidden, 32), planes)
    _column_sums_kernel[grid](partials, out0, out1, out2, programs, hidden, ROWS=128, COLS=32, num_warps=8)
