"""The matrix product of a linear layer, and on CPU its faster form with a weight that oneDNN has packed."""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_LINEAR = ("auto", "onednn", "torch")
_setting = os.environ.get("BERT_FAST_CPU_LINEAR", "auto")
# Packed float32 is the rule; what departs from it must be this much faster, so that noise does not decide.
_CLEARLY_FASTER = 1.2
# The encoder takes about so many rows at a time through its packed products.
PART_ROWS = 1024
_measuring = threading.RLock()
_pinned: dict[torch.dtype, tuple[bool, torch.dtype]] = {}


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer's weight ``[out, in]`` in oneDNN's own layout, and its bias, both in the dtype of computation."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, activation: str = "none", approximate: str = "none") -> Tensor:
        """``activation(x @ weight.T + bias)`` for ``x [T, in]``; ``activation`` is "none" or "gelu"."""
        scalars: list = []
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, scalars, approximate)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """``other + x @ weight.T + bias`` for ``other [T, out]``."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")


def rows_to_pack(rows: int) -> int:
    """The number of rows, at least ``rows``, that a packed product is given.

    oneDNN compiles a product anew, 3 ms and 0.6 MiB each, for every number of rows it meets: it is to meet few. Short
    queries by themselves have numbers of their own: 8 rows take a third of the time of 32.
    """
    multiple = 8 if rows <= 16 else 32 if rows <= 384 else 64 if rows <= PART_ROWS else 256
    return max(-(-rows // multiple), 1) * multiple


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias``: PyTorch's own on every device (cuBLAS, oneDNN, MKL)."""
    return F.linear(x, weight, bias)


def pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> PackedLinear:
    """Pack ``weight [out, in]`` for oneDNN, computing in ``dtype``: costs one copy of the weight in that dtype."""
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    return PackedLinear(torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None), bias)


def set_cpu_linear(name: str) -> None:
    """How CPU inference multiplies: "onednn" (packed weights), "torch" (``F.linear``) or "auto" (measured once).

    The environment variable ``BERT_FAST_CPU_LINEAR`` sets the same at start. Packed weights cost one more copy of the
    linear layers' weights, two where a 16-bit model runs faster in float32.

    Raises:
        ValueError: no such choice.
    """
    global _setting
    if name not in CPU_LINEAR:
        raise ValueError(f"name must be one of {CPU_LINEAR}, not {name!r}")
    _setting = name
    _measured_plan.cache_clear()


@contextmanager
def pinned_cpu_linear(dtype: torch.dtype, plan: tuple[bool, torch.dtype]) -> Iterator[None]:
    """Within the block, ``cpu_linear_plan(dtype)`` is ``plan``: for a job that must give the bits of an earlier run.

    Models that ran before keep what they packed: pin before the first forward pass.
    """
    before = _pinned.get(dtype)
    _pinned[dtype] = plan
    try:
        yield
    finally:
        if before is None:
            del _pinned[dtype]
        else:
            _pinned[dtype] = before


def cpu_linear_plan(dtype: torch.dtype) -> tuple[bool, torch.dtype]:
    """Whether to pack weights for CPU inference with a model of ``dtype``, and the dtype to compute in."""
    with _measuring:  # one thread times while the others wait: beside each other they would find something else
        return _pinned.get(dtype) or _measured_plan(dtype)


@functools.cache
def _measured_plan(dtype: torch.dtype) -> tuple[bool, torch.dtype]:
    """The plan of ``cpu_linear_plan``, by the setting.

    "auto" times one 256 x 768 x 768 product of each kind, once per process (some milliseconds). A 16-bit model computes
    in float32 unless the CPU's 16-bit products are clearly faster; that only brings it nearer to the truth.
    """
    if _setting not in CPU_LINEAR:
        raise ValueError(f"BERT_FAST_CPU_LINEAR must be one of {CPU_LINEAR}, not {_setting!r}")
    if _setting == "torch" or not torch.backends.mkldnn.is_available() or dtype == torch.float64:
        return False, dtype
    # A generator of its own: a first forward pass must not move the user's random numbers, nor follow their device.
    generator = torch.Generator().manual_seed(0)
    shapes = ((256, 768), (768, 768), (768,))
    x, w, b = (torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32) for shape in shapes)
    plans = [(True, torch.float32)]
    if dtype != torch.float32 and onednn_runs(dtype):
        plans.append((True, dtype))
    if _setting == "auto":
        plans.append((False, dtype))
    runs: dict[tuple[bool, torch.dtype], Callable[[], Tensor]] = {}
    for packed, kind in plans:
        multiply = pack_linear(w, b, kind) if packed else functools.partial(linear, weight=w.to(kind), bias=b.to(kind))
        runs[packed, kind] = functools.partial(multiply, x.to(kind))
    seconds = _interleaved_minimum(runs)
    fastest = min(plans, key=lambda plan: seconds[plan])
    return fastest if seconds[fastest] * _CLEARLY_FASTER < seconds[plans[0]] else plans[0]


def onednn_runs(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies packed weights of ``dtype`` on this machine."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _interleaved_minimum(runs: dict, rounds: int = 7) -> dict:
    best = dict.fromkeys(runs, float("inf"))
    with torch.no_grad():
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return best
