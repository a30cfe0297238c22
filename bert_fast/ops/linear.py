"""The matrix product of a linear layer, and on CPU its faster form with a weight that oneDNN has packed."""

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_LINEAR = ("auto", "onednn", "torch")
_setting = os.environ.get("BERT_FAST_CPU_LINEAR", "auto")
# A packed product must be this much faster than F.linear to be worth a second copy of the weights.
_WORTHWHILE = 1.03
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
    return _pinned.get(dtype) or _measured_plan(dtype)


@functools.cache
def _measured_plan(dtype: torch.dtype) -> tuple[bool, torch.dtype]:
    """The plan of ``cpu_linear_plan``, by the setting.

    "auto" times one 256 x 768 x 768 product of each kind, once per process (some milliseconds). A 16-bit model computes
    in float32 where the CPU's 16-bit products are the slower ones, which only brings it nearer to the truth.
    """
    if _setting not in CPU_LINEAR:
        raise ValueError(f"BERT_FAST_CPU_LINEAR must be one of {CPU_LINEAR}, not {_setting!r}")
    if _setting == "torch" or not torch.backends.mkldnn.is_available() or dtype == torch.float64:
        return False, dtype
    candidates = [dtype] if dtype == torch.float32 else [dtype, torch.float32]
    candidates = [c for c in candidates if _onednn_runs(c)]
    if not candidates:
        return False, dtype
    x, w, b = (torch.rand(*shape) for shape in ((256, 768), (768, 768), (768,)))
    runs: dict[torch.dtype | None, Callable[[], Tensor]] = {}
    for candidate in candidates:
        packed, operand = pack_linear(w, b, candidate), x.to(candidate)
        runs[candidate] = functools.partial(packed, operand)
    if _setting == "auto":
        runs[None] = functools.partial(F.linear, x.to(dtype), w.to(dtype), b.to(dtype))
    seconds = _interleaved_minimum(runs)
    best = min(candidates, key=lambda c: seconds[c])
    if _setting == "auto" and seconds[best] * _WORTHWHILE > seconds[None]:
        return False, dtype
    return True, best


def _onednn_runs(dtype: torch.dtype) -> bool:
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32


def _interleaved_minimum(runs: dict, rounds: int = 5) -> dict:
    best = dict.fromkeys(runs, float("inf"))
    with torch.no_grad():
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                best[name] = min(best[name], time.perf_counter() - start)
    return best
