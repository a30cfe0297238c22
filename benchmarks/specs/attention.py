"""Attention over packed sequences of one length, or of SQuAD-like lengths, beside every fused attention there is.

Operations: 4 L^2 H a sequence forward (two products), 10 L^2 H backward (five), whoever recomputes what. Bytes: q, k, v
and the output once; backward dq, dk, dv and dout as well.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.context import Context
from benchmarks.specs.peers import transformer_engine_attention, xformers_attention
from benchmarks.specs.spec import Cost, Provider, Spec, Tensors, missing
from benchmarks.workloads import squad_lengths
from bert_fast import ops, reference

SITE = 1


def spec(context: Context, length: int | None, p: float, bias: bool = False) -> Spec:
    """Attention over sequences of ``length`` tokens each, or of SQuAD-like lengths for None."""
    fixed = None if length is None else min(length, 24) if context.small else length
    first = "training" if p > 0 else "forward"

    def make(tokens: int, seed: int) -> Tensors:
        lengths = _ragged(context, tokens) if fixed is None else [fixed] * max(1, tokens // fixed)
        total, sizes = sum(lengths), context.sizes
        generator = context.generator(seed)
        qkv = torch.randn(total, 3, sizes.heads, sizes.head_dim, generator=generator, device=context.device)
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=context.device)
        q, k, v = qkv.to(context.dtype).unbind(1)  # as the fused projection of a forward pass leaves them
        longest = max(lengths)
        square = (1, sizes.heads, longest, longest)
        added = torch.randn(square, generator=generator, device=context.device).to(context.dtype) if bias else None
        return {
            "q": q, "k": k, "v": v, "cu_seqlens": cu_seqlens, "lengths": lengths, "max_seqlen": longest,
            "seed": torch.tensor([seed + 99], dtype=torch.int64, device=context.device), "bias": added,
        }  # fmt: skip

    def costs(t: Tensors) -> dict[str, Cost]:
        one, hidden = t["q"].numel() * t["q"].element_size(), t["q"][0].numel()
        flops = 4 * hidden * sum(n * n for n in t["lengths"])
        forward, backward = Cost(4 * one, flops), Cost(8 * one, flops * 5 // 2)
        return {first: forward, "backward": backward}

    def truth(t: Tensors, p: float) -> Tensor:
        dropout = {"p": p, "seed": t["seed"] if p > 0 else None, "site": SITE}
        return reference.attention(
            t["q"], t["k"], t["v"], t["cu_seqlens"], t["max_seqlen"], bias=t["bias"], **dropout
        )

    peers = [] if bias else [*_varlen(context), *([] if fixed is None else _dense(context, p))]
    terms = max(context.sizes.head_dim, fixed or 384)
    leaves = ("q", "k", "v", "bias") if bias else ("q", "k", "v")
    return Spec("attention", make, truth, (_ours(context), *peers), costs, (first, "backward"), leaves, p, terms)


def _ragged(context: Context, tokens: int) -> list[int]:
    """As many sequences as make up the tokens, the last as long as is left; the same for every set of inputs."""
    if context.small:
        return [17, 1, 30]
    lengths: list[int] = []
    total = 0
    for length in squad_lengths(max(2, tokens // 100)):
        lengths.append(min(length, tokens - total))
        total += lengths[-1]
        if total == tokens:
            break
    return lengths


def _ours(context: Context) -> Provider:
    def run(t: Tensors, p: float) -> Tensor:
        with context.ours():
            plan = f"plan {context.backend}"
            if plan not in t:  # made once for all layers of a model, hence not timed
                t[plan] = ops.attention_plan(t["cu_seqlens"])
            dropout = {"p": p, "seed": t["seed"], "site": SITE}
            return ops.attention(
                t["q"], t["k"], t["v"], t["cu_seqlens"], t["max_seqlen"], bias=t["bias"], plan=t[plan], **dropout
            )

    return Provider("bert_fast", run, masks=True)


def _varlen(context: Context) -> list[Provider]:
    on_gpu = None if context.device.type == "cuda" else "needs a GPU"

    def torch_varlen(t: Tensors, p: float) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        if p > 0:
            raise NotImplementedError("varlen_attn has no dropout")
        cu, longest = t["cu_seqlens"], t["max_seqlen"]
        return varlen_attn(t["q"], t["k"], t["v"], cu, cu, longest, longest)

    def flash_2(t: Tensors, p: float) -> Tensor:
        from flash_attn import flash_attn_varlen_func

        cu, longest = t["cu_seqlens"], t["max_seqlen"]
        return flash_attn_varlen_func(t["q"], t["k"], t["v"], cu, cu, longest, longest, dropout_p=p)

    def flash_3(t: Tensors, p: float) -> Tensor:
        from flash_attn_interface import flash_attn_varlen_func

        if p > 0:
            raise NotImplementedError("FlashAttention-3 has no dropout")
        cu, longest = t["cu_seqlens"], t["max_seqlen"]
        out = flash_attn_varlen_func(t["q"], t["k"], t["v"], cu, cu, longest, longest)
        return out[0] if isinstance(out, tuple) else out

    return [
        Provider("torch varlen_attn", torch_varlen, missing=on_gpu),
        Provider("flash-attn 2", flash_2, missing=missing("flash_attn", context)),
        Provider("flash-attn 3", flash_3, missing=missing("flash_attn_interface", context)),
        Provider("xformers", xformers_attention, missing=missing("xformers", context)),
        Provider("transformer-engine", transformer_engine_attention, missing=missing("transformer_engine", context)),
    ]


def _dense(context: Context, dropout: float) -> list[Provider]:
    """PyTorch's attention, one backend at a time, on the same memory seen as [B, N, S, D]."""
    on_gpu = None if context.device.type == "cuda" else "needs a GPU"
    flash = "no dropout on a CPU" if on_gpu and dropout > 0 else None

    def provider(name: str, kind: SDPBackend, missing: str | None) -> Provider:
        def run(t: Tensors, p: float) -> Tensor:
            batch, length = len(t["lengths"]), t["lengths"][0]
            q, k, v = (t[n].unflatten(0, (batch, length)).transpose(1, 2) for n in ("q", "k", "v"))
            with sdpa_kernel(kind):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2)

        return Provider(f"sdpa {name}", run, missing=missing)

    return [
        provider("math", SDPBackend.MATH, None),
        provider("flash", SDPBackend.FLASH_ATTENTION, flash),
        provider("cudnn", SDPBackend.CUDNN_ATTENTION, on_gpu),
        provider("efficient", SDPBackend.EFFICIENT_ATTENTION, on_gpu),
    ]
