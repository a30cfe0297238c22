"""attention whose queries, keys and values lie side by side, as one product made them: so does their gradient."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast.ops import stand_ins
from bert_fast.ops.attention import AttentionPlan, attention, attention_plan, check_window, kernel_runs, window_bias
from bert_fast.ops.library import below_autograd, define


def attention_joined(
    qkv: Tensor,
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
    """``attention(*qkv.unbind(1), ...)`` with one gradient for all three, so that none of them is copied to its place.

    Args:
        qkv: ``[T, 3, N, D]``.
        cu_seqlens .. plan: of :func:`bert_fast.ops.attention`.

    Returns:
        ``[T, N, D]``; rows that see no key are 0.

    Raises:
        ValueError: ``qkv`` has another shape; or as :func:`bert_fast.ops.attention`.
    """
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv must be [T, 3, N, D], not {list(qkv.shape)}")
    check_window(window)
    scale = 1 / math.sqrt(qkv.shape[-1]) if scale is None else scale
    if (p == 0 or seed is not None) and kernel_runs(qkv, qkv, qkv, bias):
        bias, window = window_bias(bias, window, max_seqlen, qkv), None
        qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
        schedule = plan if isinstance(plan, Tensor) else attention_plan(cu_seqlens)
        options = (bias, key_mask, seed if p > 0 else None, scale, p, site)
        return _attention_joined(qkv, cu_seqlens, max_seqlen, schedule, *options)[0]
    named: dict[str, Any] = {
        "scale": scale,
        "bias": bias,
        "key_mask": key_mask,
        "window": window,
        "p": p,
        "seed": seed,
        "site": site,
        "plan": plan,
    }
    return attention(*qkv.unbind(1), cu_seqlens, max_seqlen, **named)


def _forward(qkv, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site):
    from bert_fast.kernels.attention import attention_forward

    options = {"bias": bias, "key_mask": key_mask, "seed": seed, "scale": scale, "p": p, "site": site}
    return attention_forward(*qkv.unbind(1), cu_seqlens, max_seqlen, schedule=schedule, **options)


def _fake(qkv, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site):
    tokens, _, heads, head_dim = qkv.shape
    return qkv.new_empty(tokens, heads, head_dim), qkv.new_empty(heads, tokens, dtype=torch.float32)


def _backward(dout, qkv, out, lse, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site, need_dbias):
    from bert_fast.kernels.attention_backward import attention_backward

    options = {"bias": bias, "key_mask": key_mask, "seed": seed, "scale": scale, "p": p, "site": site}
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    places = {"dqkv": dqkv.unbind(1), "schedule": schedule, "need_dbias": need_dbias}
    *_, dbias = attention_backward(dout, *qkv.unbind(1), out, lse, cu_seqlens, max_seqlen, **places, **options)
    return [dqkv] if dbias is None else [dqkv, dbias]


def _backward_fake(
    dout, qkv, out, lse, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site, need_dbias
):
    return [x.new_empty(x.shape) for x in ([qkv, bias] if need_dbias else [qkv])]


class _AttentionJoined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv, cu_seqlens, max_seqlen, schedule, bias, key_mask, seed, scale, p, site
    ) -> tuple[Tensor, Tensor]:
        options = (bias, key_mask, seed, scale, p, site)
        out, lse = below_autograd(_attention_joined, qkv, cu_seqlens, max_seqlen, schedule, *options)
        ctx.save_for_backward(qkv, out, lse, cu_seqlens, schedule, bias, key_mask, seed)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.max_seqlen, ctx.scalars = max_seqlen, (scale, p, site)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, _: None) -> tuple:
        if dout is None:
            return (None,) * 10
        qkv, out, lse, cu_seqlens, schedule, bias, key_mask, seed = ctx.saved_tensors
        need_dbias = bias is not None and ctx.needs_input_grad[4]
        dqkv, *dbias = _attention_joined_grad(
            dout, qkv, out, lse, cu_seqlens, ctx.max_seqlen, schedule, bias, key_mask, seed, *ctx.scalars, need_dbias
        )
        return dqkv, None, None, None, *(dbias or [None]), None, None, None, None, None


_attention_joined = define(
    "attention_joined(Tensor qkv, Tensor cu_seqlens, SymInt max_seqlen, Tensor schedule, Tensor? bias, "
    "Tensor? key_mask, Tensor? seed, float scale, float p, int site) -> (Tensor, Tensor)",
    _forward,
    _fake,
    _AttentionJoined,
    instead=stand_ins.attention_joined,
    of="attention",
)
_attention_joined_grad = define(
    "attention_joined_backward(Tensor dout, Tensor qkv, Tensor out, Tensor lse, Tensor cu_seqlens, SymInt max_seqlen, "
    "Tensor schedule, Tensor? bias, Tensor? key_mask, Tensor? seed, float scale, float p, int site, bool need_dbias) "
    "-> Tensor[]",
    _backward,
    _backward_fake,
    instead=stand_ins.attention_joined_backward,
    of="attention",
)
