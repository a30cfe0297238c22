"""What a call does, counted: ops, kernels launched, allocations, waits for the device, operations of matrix products.

Counts do not depend on how busy a machine is. A test that bounds them notices a lost fusion where no clock would.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# They make another view of the same memory, or only look at a tensor.
_VIEWS = frozenset((
    "alias", "as_strided", "chunk", "detach", "diagonal", "expand", "expand_as", "flatten", "lift_fresh", "narrow",
    "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "to", "transpose", "unbind",
    "unflatten", "unsqueeze", "view", "view_as", "resolve_conj", "resolve_neg", "is_nonzero", "item", "empty",
))  # fmt: skip
_MAKERS = frozenset(("aten::empty", "aten::empty_strided", "aten::resize_"))


@dataclass(frozen=True)
class Counts:
    """Of one call.

    Attributes:
        ops: PyTorch's and our ops that compute or copy, by name, without those that others call.
        allocations: tensors whose memory was asked for; ``allocated`` the bytes.
        flops: of matrix products, two for a multiplication with its addition.
        waits: reads of a number out of a tensor, for which a GPU would be waited for (see :func:`host_syncs` on one).
        launches: kernels that ran on the GPU.
    """

    ops: Counter[str] = field(default_factory=Counter)
    allocations: int = 0
    allocated: int = 0
    flops: int = 0
    waits: int = 0
    launches: int = 0

    def __sub__(self, other: Counts) -> Counts:
        ops = Counter(self.ops)
        ops.subtract(other.ops)
        return Counts(
            Counter({name: count for name, count in ops.items() if count}),
            self.allocations - other.allocations, self.allocated - other.allocated, self.flops - other.flops,
            self.waits - other.waits, self.launches - other.launches,
        )  # fmt: skip


def counted(call: Callable[[], object], *, warmup: int = 2) -> Counts:
    """The counts of one call, after ``warmup`` others that may compile, pack and cache."""
    for _ in range(warmup):
        call()
    activities = [ProfilerActivity.CPU]
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True, profile_memory=True) as found:
        call()
        if on_gpu:
            torch.cuda.synchronize()
    return _counts(found.events())


def _counts(events: Any) -> Counts:
    ops: Counter[str] = Counter()
    allocations = allocated = flops = waits = launches = 0
    for event in events:
        name = event.name
        if event.device_type == DeviceType.CUDA:
            launches += not name.startswith(("Memcpy", "Memset", "Context Sync", "Event Sync", "Stream Sync"))
            continue
        if "::" not in name or name.startswith("autograd::"):
            continue
        short = name.partition("::")[2]
        parent = event.cpu_parent
        if parent is None or "::" not in parent.name or parent.name.startswith("autograd::"):
            ops[name] += short not in _VIEWS
        waits += name == "aten::_local_scalar_dense"
        flops += product_flops(name, event.input_shapes)
        allocations += name in _MAKERS
        allocated += max(event.self_cpu_memory_usage, 0) + max(getattr(event, "self_device_memory_usage", 0), 0)
    return Counts(+ops, allocations, allocated, flops, waits, launches)


def product_flops(name: str, shapes: Any) -> int:
    """Operations of a matrix product by the shapes of its arguments; 0 for what is none."""
    if name in ("aten::mm", "aten::bmm"):
        x, weight = shapes[:2]
    elif name in ("aten::addmm", "aten::addmm_", "aten::baddbmm"):
        x, weight = shapes[1:3]
    elif name == "mkldnn::_linear_pointwise":
        x, weight = shapes[0], shapes[2 if len(shapes) == 5 else 1]  # with a sum: x, other, weight, bias, "add"
        return 2 * math.prod(x) * weight[0]
    else:
        return 0
    return 2 * math.prod(x) * weight[-1]


def host_syncs(call: Callable[[], object]) -> int | None:
    """How often one call makes the host wait for the GPU, as PyTorch's debug mode sees it; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in seen)
