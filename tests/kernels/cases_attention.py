"""Launches of the attention kernels for compiled.py: every plan, read from a fused projection as the model does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

# plan's name -> the longest sequence that chooses it
LENGTHS = {"16": 16, "64": 64, "128": 128, "512": 512}
HEADS = 12


def cases(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], None]]]:
    """``attention D=<head dim> S=<longest> [dropout] [bias|key_mask]``: forward and backward of each."""
    for head_dim in (64, 32, 128, 80):
        for name, length in LENGTHS.items():
            label = f"attention D={head_dim} S={name}"
            yield label, functools.partial(_run, dtype, head_dim, length)
            if head_dim in (32, 64):
                yield f"{label} dropout", functools.partial(_run, dtype, head_dim, length, p=0.1)
                yield f"{label} dropout key_mask", functools.partial(_run, dtype, head_dim, length, 0.1, key_mask=True)
    for name, length in LENGTHS.items():
        yield f"attention D=64 S={name} bias", functools.partial(_run, dtype, 64, length, bias=True)
        for head_dim in (32, 64):
            label = f"attention D={head_dim} S={name} dropout bias"
            yield label, functools.partial(_run, dtype, head_dim, length, 0.1, bias=True)
        yield f"attention D=64 S={name} key_mask", functools.partial(_run, dtype, 64, length, key_mask=True)


def _run(dtype: torch.dtype, head_dim: int, length: int, p: float = 0.0, bias: bool = False, key_mask: bool = False):
    from bert_fast.kernels.attention import attention_backward, attention_forward

    tokens, batch = 512, 8
    q, k, v = torch.zeros(tokens, 3, HEADS, head_dim, dtype=dtype).unbind(1)
    gradients = torch.zeros(tokens, 3, HEADS, head_dim, dtype=dtype).unbind(1)
    cu_seqlens = torch.arange(batch + 1, dtype=torch.int32) * (tokens // batch)
    options = {
        "scale": head_dim**-0.5,
        "p": p,
        "seed": torch.zeros(1, dtype=torch.int64),
        "site": 3,
        "bias": torch.zeros(1, HEADS, length, length, dtype=dtype) if bias else None,
        "key_mask": torch.ones(tokens, dtype=torch.bool) if key_mask else None,
    }
    out, lse = attention_forward(q, k, v, cu_seqlens, length, **options)
    attention_backward(
        torch.zeros_like(out), q, k, v, out, lse, cu_seqlens, length, need_dbias=bias, dqkv=gradients, **options
    )
