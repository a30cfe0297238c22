"""One vector per sequence out of packed token vectors: mean, max or first token, in float32, without padding."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def pool(hidden: Tensor, cu_seqlens: Tensor, mode: str = "mean", normalize: bool = False) -> Tensor:
    """Pools each packed sequence into one vector.

    Args:
        hidden: [T, H], any float dtype; sequence b is rows cu_seqlens[b] to cu_seqlens[b+1].
        cu_seqlens: int32 or int64 [B+1], from 0 to T, on the device of `hidden`.
        mode: "mean" or "max" over the sequence's tokens (special tokens count, as in sentence-transformers), or
            "cls", its first token.
        normalize: scale every vector to length 1 (an all-zero one stays zero).

    Returns:
        [B, H] float32 (float64 if `hidden` is). A sequence without tokens gives zeros. Differentiable.

    `torch.segment_reduce` sums each segment in order, so results do not change from run to run (index_add on a GPU
    does) nor with the batch a sequence is in.
    """
    if mode not in POOLINGS:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(POOLINGS)}")
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden is {hidden.dtype} {list(hidden.shape)}: a float tensor [tokens, hidden] is needed")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.device != hidden.device:
        raise ValueError(
            f"cu_seqlens is {list(cu_seqlens.shape)} on {cu_seqlens.device}: [B + 1] on {hidden.device} is wanted"
        )
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    if cu_seqlens.device.type == "cpu" and (int(cu_seqlens[-1]) != len(hidden) or bool((lengths < 0).any())):
        raise ValueError(f"cu_seqlens must rise from 0 to the {len(hidden)} tokens of hidden")
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    empty = (lengths == 0)[:, None]
    if len(hidden) == 0 or len(lengths) == 0:
        pooled = hidden.new_zeros(len(lengths), hidden.shape[1], dtype=dtype)
    elif mode == "cls":
        pooled = hidden[starts.clamp(max=len(hidden) - 1)].to(dtype).masked_fill(empty, 0)
    elif mode == "mean":
        total = torch.segment_reduce(hidden.to(dtype), "sum", lengths=lengths, axis=0, unsafe=True, initial=0)
        pooled = total / lengths.clamp(min=1)[:, None]
    else:
        highest = torch.segment_reduce(hidden.to(dtype), "max", lengths=lengths, axis=0, unsafe=True)
        pooled = highest.masked_fill(empty, 0)
    return torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled
