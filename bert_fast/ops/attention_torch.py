"""attention by PyTorch's own ops: grouped on CPU, FlashAttention-2 or padded elsewhere and while compiling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_fast import reference
from bert_fast.ops.attention_groups import AttentionGroups
from bert_fast.ops.library import valueless


def torch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    bias: Tensor | None,
    key_mask: Tensor | None,
    window: int | None,
    p: float,
    groups: AttentionGroups | None,
) -> Tensor:
    """See :func:`bert_fast.ops.attention`."""
    if not torch.compiler.is_compiling():
        if q.shape[0] == 0:
            return q + k + v  # empty, and still a function of all three
        if q.device.type == "cpu" and (bias is None or bias.shape[0] == 1) and not valueless(q):
            if key_mask is not None:
                # A NaN in a hidden row would survive the weight of 0 that the mask gives it.
                k, v = (x.masked_fill(~key_mask[:, None, None], 0) for x in (k, v))
            return (groups or AttentionGroups(cu_seqlens, key_mask)).attend(q, k, v, scale, p, bias, window)
    if window is None and _varlen_runs(q, bias, key_mask, p):
        from torch.nn.attention.varlen import varlen_attn

        # Its scale became an argument only lately.
        q = q * (scale * math.sqrt(q.shape[-1]))
        return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    return _padded(q, k, v, cu_seqlens, max_seqlen, scale, bias, key_mask, window, p)


def _varlen_runs(q: Tensor, bias: Tensor | None, key_mask: Tensor | None, p: float) -> bool:
    """Whether PyTorch's own packed attention (FlashAttention-2) covers this call."""
    if q.device.type != "cuda" or torch.version.hip is not None or bias is not None or key_mask is not None or p > 0:
        return False
    if not torch.compiler.is_compiling() and valueless(q):
        return False  # there may be no such GPU to ask
    half = q.dtype in (torch.float16, torch.bfloat16)
    return half and q.shape[-1] % 8 == 0 and torch.cuda.get_device_capability(q.device) >= (8, 0)


def _padded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    bias: Tensor | None,
    key_mask: Tensor | None,
    window: int | None,
    p: float,
) -> Tensor:
    """Through PyTorch's dense attention on a padded copy: what compiles, and what takes an additive bias."""
    tokens = q.shape[0]
    rows, present = reference.padded_rows(cu_seqlens, max_seqlen, tokens)
    sequence, offset = reference.sequence_of_row(cu_seqlens, tokens)
    mask = present if key_mask is None else present & key_mask[rows]
    # Rows beyond a sequence's end hold other tokens' values: a NaN there would survive its weight of 0.
    padded = [x[rows].masked_fill(~mask[:, :, None, None], 0).transpose(1, 2) for x in (k, v)]
    seen = mask[:, None, None, :]
    if window is not None:
        seen = seen & reference.within_window(max_seqlen, window, q.device)
    attn_mask = seen
    if bias is not None:
        attn_mask = bias[..., :max_seqlen, :max_seqlen].to(q.dtype).masked_fill(~seen, -math.inf)
    out = F.scaled_dot_product_attention(
        q[rows].transpose(1, 2), *padded, attn_mask=attn_mask, dropout_p=p, scale=scale
    )
    # Rows beyond the last sequence's end are allowed; what comes back there is without meaning.
    return out.transpose(1, 2)[sequence.clamp(max=rows.shape[0] - 1), offset.clamp(max=max_seqlen - 1)]
