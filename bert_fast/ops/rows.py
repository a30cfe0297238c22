"""What the row-wise Triton ops share: when their kernels run, and the shapes of what they save."""

import torch
from torch import Tensor

from bert_fast import backend
from bert_fast.ops.library import dtype_reasons

MAX_HIDDEN = 8192


def runs_on_rows(op: str, *, limit: int | None = MAX_HIDDEN, **tensors: Tensor | None) -> bool:
    """Whether the Triton kernel of ``op`` runs on ``x`` among ``tensors``: ``[T, H]`` with H at most ``limit``.

    Kernels read vectors by pointer alone: each must be ``[H]``, contiguous, and lie where x does. PyTorch's ops, which
    run otherwise, take what they can and name what they cannot.
    """
    x = tensors["x"]
    against = dtype_reasons(**tensors)
    if x.dim() != 2:
        against.append(f"x has {x.dim()} dimensions, not 2")
    elif limit is not None and x.shape[1] > limit:
        against.append(f"x is {x.shape[1]} wide, over {limit}")
    for name, other in tensors.items():
        if other is None or other is x:
            continue
        if other.device != x.device:
            against.append(f"{name} is on {other.device}, x on {x.device}")
        # Never the number of rows: under a compiler with dynamic shapes, comparing it would fix it.
        if other.dim() not in (1, 2) or other.shape[-1] != x.shape[-1]:
            against.append(f"{name} is not as wide as x")
        elif other.dim() == 1 and not other.is_contiguous():
            against.append(f"{name} is not contiguous")
    return backend.runs(op, "triton", x.device, tuple(against))


def norm_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype a LayerNorm must return: float32 under autocast on a GPU, as eager's; None for its natural one."""
    return torch.float32 if x.device.type == "cuda" and torch.is_autocast_enabled("cuda") else None


def statistics_like(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of every row: two float32 ``[T]``."""
    return x.new_empty(x.shape[0], dtype=torch.float32), x.new_empty(x.shape[0], dtype=torch.float32)
