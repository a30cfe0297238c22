"""attention: bidirectional, within each sequence of a packed batch."""

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import backend, reference
from bert_fast.ops import stand_ins
from bert_fast.ops.attention_groups import AttentionGroups
from bert_fast.ops.attention_host import host_attention, host_attention_runs
from bert_fast.ops.attention_torch import torch_attention
from bert_fast.ops.library import below_autograd, define, dtype_reasons, valueless

AttentionPlan: TypeAlias = AttentionGroups | Tensor | None


def attention_plan(cu_seqlens: Tensor, key_mask: Tensor | None = None) -> AttentionPlan:
    """What all layers' attention over one batch shares: made once, without waiting for the device.

    Args:
        cu_seqlens: int32 ``[B + 1]``.
        key_mask: bool ``[T]``.

    Returns:
        on a GPU the order, longest first, in which the kernels start sequences; on CPU which sequences run together;
        None while PyTorch's ops are compiled, and where there are no values.
    """
    if backend.has_kernels(cu_seqlens.device):
        lengths, order = torch.sort(cu_seqlens.diff(), descending=True, stable=True)
        cumulative = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return torch.stack([cumulative, torch.nn.functional.pad(order.to(torch.int32), (0, 1))])
    if torch.compiler.is_compiling() or cu_seqlens.device.type != "cpu" or valueless(cu_seqlens):
        return None
    return AttentionGroups(cu_seqlens, key_mask)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    scale: float | None = None,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    window: int | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
    plan: AttentionPlan = None,
) -> Tensor:
    """Bidirectional attention within each sequence (Vaswani et al., 2017).

    The semantics are :func:`bert_fast.reference.attention`'s.

    Args:
        q, k, v: ``[T, N, D]`` of any strides.
        cu_seqlens: int32 ``[B + 1]``; sequence b owns rows ``cu_seqlens[b]:cu_seqlens[b + 1]``.
        max_seqlen: at least the longest sequence's length.
        scale: of the scores, positive; ``1 / sqrt(D)`` by default.
        bias: additive ``[B or 1, N or 1, S, S]``, ``S >= max_seqlen``; -inf hides a key from a query.
        key_mask: bool ``[T]``; a key that is False is seen by no query.
        window: how many places a key may lie from a query that sees it, at least 0; all of them by default. The GPU's
            kernels know of none: they are handed it as a bias, and skip nothing.
        p, seed, site: dropout of the probabilities. The kernel needs ``seed``, an int64 tensor of one element on the
            same device; without it PyTorch's generator draws the mask.
        plan: of :func:`attention_plan`, where several layers run over one batch.

    Returns:
        ``[T, N, D]``; rows that see no key are 0.

    Raises:
        ValueError: ``window`` is negative.
    """
    check_window(window)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if (p == 0 or seed is not None) and kernel_runs(q, k, v, bias):
        bias, window = window_bias(bias, window, max_seqlen, q), None
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        schedule = plan if isinstance(plan, Tensor) else attention_plan(cu_seqlens)
        options = (bias, key_mask, seed if p > 0 else None, scale, p, site)
        return _attention(q, k, v, cu_seqlens, max_seqlen, schedule, *options)[0]
    if seed is not None and p > 0:
        dropout = {"p": p, "seed": seed, "site": site}
        return reference.attention(
            q, k, v, cu_seqlens, max_seqlen, scale=scale, bias=bias, key_mask=key_mask, window=window, **dropout
        )
    if host_attention_runs(q, k, v, cu_seqlens, bias, key_mask, p):
        return host_attention(q, k, v, cu_seqlens, scale, key_mask, bias=bias, window=window)
    groups = plan if isinstance(plan, AttentionGroups) else None
    return torch_attention(q, k, v, cu_seqlens, max_seqlen, scale, bias, key_mask, window, p, groups)


def check_window(window: int | None) -> None:
    """Raise the ValueError of :func:`attention`."""
    if window is not None and window < 0:
        raise ValueError(f"window must be at least 0, or None for all keys, not {window}")


def window_bias(bias: Tensor | None, window: int | None, max_seqlen: int, x: Tensor) -> Tensor | None:
    """``bias`` with -inf wherever a key lies too far away; without any, ``[1, 1, S, S]`` in the dtype of ``x``."""
    if window is None or (isinstance(max_seqlen, int) and window >= max_seqlen - 1):
        return bias
    far = ~reference.within_window(max_seqlen, window, x.device)
    if bias is None:
        return torch.zeros(1, 1, *far.shape, dtype=x.dtype, device=x.device).masked_fill_(far, -math.inf)
    return bias[..., :max_seqlen, :max_seqlen].masked_fill(far, -math.inf)


def kernel_runs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels run on tensors ``[..., D]`` of these dtypes."""
    against = dtype_reasons(q=q, bias=bias)
    if not q.dtype == k.dtype == v.dtype:
        against.append(f"q, k and v differ in dtype: {q.dtype}, {k.dtype}, {v.dtype}")
    if q.shape[-1] % 8 or not 8 <= q.shape[-1] <= 128:
        against.append(f"head dimension {q.shape[-1]} is not a multiple of 8 from 8 to 128")
    return backend.runs("attention", "triton", q.device, tuple(against))


def _forward(q, k, v, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site):
    from bert_fast.kernels.attention import attention_forward

    options = {"bias": bias, "key_mask": key_mask, "seed": seed, "scale": scale, "p": p, "site": site}
    return attention_forward(q, k, v, cu_seqlens, max_seqlen, schedule=schedule, **options)


def _fake(q, k, v, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site):
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


def _backward(
    dout, q, k, v, out, lse, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site, need_dbias
):
    from bert_fast.kernels.attention_backward import attention_backward

    options = {"bias": bias, "key_mask": key_mask, "seed": seed, "scale": scale, "p": p, "site": site}
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    grads = attention_backward(
        dout, q, k, v, out, lse, cu_seqlens, max_seqlen, schedule=schedule, need_dbias=need_dbias, **options
    )
    return [grad for grad in grads if grad is not None]


def _backward_fake(
    dout, q, k, v, out, lse, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site, need_dbias
):
    grads = [q.new_empty(q.shape) for _ in range(3)]
    return [*grads, bias.new_empty(bias.shape)] if need_dbias else grads


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q, k, v, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site
    ) -> tuple[Tensor, Tensor]:
        options = (bias, key_mask, seed, scale, p, site)
        out, lse = below_autograd(_attention, q, k, v, cu_seqlens, max_seqlen, schedule, *options)
        ctx.save_for_backward(q, k, v, out, lse, cu_seqlens, schedule, bias, key_mask, seed)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.max_seqlen, ctx.scalars = max_seqlen, (scale, p, site)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, _: None) -> tuple:
        if dout is None:
            return (None,) * 12
        q, k, v, out, lse, cu_seqlens, schedule, bias, key_mask, seed = ctx.saved_tensors
        masks = (bias, key_mask, seed)
        need_dbias = bias is not None and ctx.needs_input_grad[6]
        dq, dk, dv, *dbias = _attention_grad(
            dout, q, k, v, out, lse, cu_seqlens, ctx.max_seqlen, schedule, *masks, *ctx.scalars, need_dbias
        )
        return dq, dk, dv, None, None, None, *(dbias or [None]), None, None, None, None, None


_attention = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, SymInt max_seqlen, Tensor schedule, Tensor? bias, "
    "Tensor? key_mask, Tensor? seed, float scale, float p, int site) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _Attention,
    instead=stand_ins.attention,
)
_attention_grad = define(
    "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor cu_seqlens, "
    "SymInt max_seqlen, Tensor schedule, Tensor? bias, Tensor? key_mask, Tensor? seed, float scale, float p, int site, "
    "bool need_dbias) -> Tensor[]",
    _backward,
    _backward_fake,
    instead=stand_ins.attention_backward,
    of="attention",
)
