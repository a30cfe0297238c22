"""rotary: turn queries and keys by their positions."""

import torch
from torch import Tensor

from bert_fast import backend, reference
from bert_fast.ops.library import plain_tensors, traced


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): elements ``i`` and ``i + D / 2`` of a head turn by one angle.

    There is no kernel for it yet: PyTorch's ops run it everywhere.

    Args:
        x: ``[T, ..., D]``, queries and keys, of any strides; D is even.
        cos, sin: ``[T, D / 2]``, of each row's angles.

    Returns:
        as ``x``, contiguous; computed in at least float32.

    Raises:
        ValueError: the shapes do not fit.
    """
    wanted = (x.shape[0], x.shape[-1] // 2)
    if x.shape[-1] % 2 or cos.shape != wanted or sin.shape != wanted:
        raise ValueError(
            f"cos and sin must be {list(wanted)} and D even for x {list(x.shape)}, "
            f"not {list(cos.shape)} and {list(sin.shape)}"
        )
    if not torch.compiler.is_compiling():
        backend.note("rotary", "reference", "triton", ["there is no kernel for rotary positions"])
    if torch.is_grad_enabled() or traced() or x.dtype != torch.float32 or not plain_tensors(x, cos, sin):
        return reference.rotary(x, cos, sin)
    # Four passes where the formula as it stands makes nine.
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    lead = (x.shape[0], *[1] * (x.dim() - 2), cos.shape[-1])
    cos, sin = cos.to(x.dtype).reshape(lead), sin.to(x.dtype).reshape(lead)
    (first, second), (low, high) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return out
