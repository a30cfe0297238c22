"""What every kernel shares: dots, dropout words, activation math, and the few facts a launcher asks of its device.

Kernels load in the tensor's dtype, convert to float32 at once and compute there. The Triton interpreter
(TRITON_INTERPRET=1) is an oracle for float32 and float16 only: its bfloat16 is raw bits in dots, truncation in stores.
"""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager

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


# --- inside kernels ---


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. PRECISION comes from :func:`dot_precision`."""
    if INTERPRETING:
        # numpy would multiply 16-bit operands in 16 bits (and bfloat16 as integers)
        out = acc + tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        out = tl.dot(a, b, acc, input_precision=PRECISION)
    return out


@triton.jit
def philox_words(seed, site, group):
    """The four uint32 words of Philox4x32-10 that serve elements 4 * group .. 4 * group + 3.

    seed: int64 scalar (a value, already loaded), the key. site: int32 scalar, which the kernel lists in
    ``do_not_specialize`` (a specialised 1 is no tensor). group: int64 tile of element index >> 2.
    """
    c0 = group.to(tl.uint32)
    c1 = (group >> 32).to(tl.uint32)
    c2 = c0 * 0 + site.to(tl.uint32)
    return tl.philox(seed, c0, c1, c2, c0 * 0)


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

    ``group[r, c]`` is element[r, 4 * c] >> 2, which needs element[r, 0] to be a multiple of 4.
    """
    w0, w1, w2, w3 = philox_words(seed, site, group)
    limit = threshold.to(tl.uint32, bitcast=True)
    # join puts its two operands on a new minor axis: [[0, 2], [1, 3]] interleaves to 0 1 2 3
    even = tl.join(w0 >= limit, w2 >= limit)
    odd = tl.join(w1 >= limit, w3 >= limit)
    return tl.reshape(tl.join(even, odd), (group.shape[0], group.shape[1] * 4))


@triton.jit
def erf(x):
    """Error function to float32 accuracy. Core Triton: runs interpreted and compiled."""
    return tl.math.erf(x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), saturating without overflow."""
    return 1.0 / (1.0 + tl.exp2(-LOG2E * x))


@triton.jit
def tanh(x):
    """tanh through exp2, within 2e-7 absolute; saturates to +-1."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(2.0 * LOG2E * x))
