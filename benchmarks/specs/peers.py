"""Other libraries' kernels as functions of an op's inputs; each imports its library when it runs.

Where a library has only modules, the module is made once for a set of inputs and kept among them, so that a time holds
the call and not the making.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Any]


def _once(t: Tensors, name: str, make: Callable[[], Any]) -> Any:
    if name not in t:
        t[name] = make()
    return t[name]


def apex_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """NVIDIA apex, csrc/layer_norm_cuda: ``x [T, H]``."""
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(x, weight, bias, tuple(weight.shape), eps)


def apex_lamb(groups: Sequence[tuple[Any, Sequence[Any]]], max_grad_norm: float) -> torch.optim.Optimizer:
    """NVIDIA apex's FusedLAMB over ``groups`` of (rule, tensors), its moments and step taken from the tensors.

    Groups without decay are not adapted in apex either (``use_nvlamb=False``).
    """
    from apex.optimizers import FusedLAMB

    given = []
    for rule, tensors in groups:
        for row in tensors:
            row.param.grad = row.grad
        params = [row.param for row in tensors]
        given.append({"params": params, "lr": rule.lr, "eps": rule.eps, "weight_decay": rule.weight_decay})
    optimizer = FusedLAMB(given, max_grad_norm=max_grad_norm)
    for group, (_, tensors) in zip(optimizer.param_groups, groups, strict=True):
        group["step"] = int(tensors[0].step)
        for row in tensors:
            optimizer.state[row.param] = {"exp_avg": row.exp_avg, "exp_avg_sq": row.exp_avg_sq}
    return optimizer


def transformer_engine_layer_norm(t: Tensors, eps: float) -> Tensor:
    """NVIDIA Transformer Engine's LayerNorm of ``t["x"]`` with the weights in ``t``."""
    import transformer_engine.pytorch as te

    def make() -> torch.nn.Module:
        module = te.LayerNorm(t["x"].shape[-1], eps=eps, params_dtype=t["x"].dtype, device=t["x"].device)
        for name in ("weight", "bias"):
            module._parameters[name] = t[name]  # the very tensor, whose gradient is asked for
        return module

    # inputs that get gradients are copies of the others, with weights of their own
    return _once(t, f"te layer norm {id(t['weight'])}", make)(t["x"])


def transformer_engine_attention(t: Tensors, p: float) -> Tensor:
    """NVIDIA Transformer Engine's attention over packed sequences (its "thd" layout): ``[T, N, D]``."""
    import transformer_engine.pytorch as te

    def make() -> torch.nn.Module:
        _, heads, dim = t["q"].shape
        return te.DotProductAttention(
            heads, dim, attention_dropout=p, qkv_format="thd", attn_mask_type="padding"
        ).to(t["q"].device)

    cu, longest = t["cu_seqlens"], t["max_seqlen"]
    out = _once(t, f"te attention {p}", make)(
        t["q"], t["k"], t["v"], cu_seqlens_q=cu, cu_seqlens_kv=cu, max_seqlen_q=longest, max_seqlen_kv=longest
    )
    return out.view(t["q"].shape)


def xformers_attention(t: Tensors, p: float) -> Tensor:
    """xFormers' memory-efficient attention over packed sequences: ``[T, N, D]``."""
    from xformers.ops import memory_efficient_attention
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    mask = _once(t, "xformers mask", lambda: BlockDiagonalMask.from_seqlens(t["lengths"]).to(t["q"].device))
    q, k, v = (t[name].unsqueeze(0) for name in ("q", "k", "v"))
    return memory_efficient_attention(q, k, v, attn_bias=mask, p=p).squeeze(0)


def flash_dropout_add_layer_norm(t: Tensors, p: float, eps: float) -> Tensor:
    """flash-attn's Triton LayerNorm with residual and dropout; it has no bias before them, so that is added first."""
    from flash_attn.ops.triton.layer_norm import layer_norm_fn

    x = t["x"] + t["x_bias"]
    return layer_norm_fn(x, t["weight"], t["bias"], residual=t["residual"], eps=eps, dropout_p=p)


def flash_cross_entropy(t: Tensors) -> Tensor:
    """flash-attn's Triton cross-entropy, mean over the labels that are not -100."""
    from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

    losses = cross_entropy_loss(t["logits"], t["labels"], ignore_index=-100)[0]
    return losses.sum() / (t["labels"] != -100).sum()
