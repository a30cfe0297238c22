"""One vector per sequence out of packed token vectors: mean, max or first token, in float32, without padding."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import backend, extension, reference
from bert_fast.ops import library
from bert_fast.ops.library import below_autograd, define, dtype_reasons, valueless

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
_CODES = (0, 2, 1)  # of POOLINGS, for the extension


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

    Results do not change from run to run nor with the batch a sequence is in. A maximum's gradient goes to the first
    row that it is in.

    Raises ValueError naming the argument; what `cu_seqlens` holds is only read on the CPU.
    """
    if mode not in POOLINGS:
        raise ValueError(f"mode={mode!r}: allowed are {', '.join(POOLINGS)}")
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden is {hidden.dtype} {list(hidden.shape)}: a float tensor [tokens, hidden] is needed")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.device != hidden.device:
        raise ValueError(
            f"cu_seqlens is {list(cu_seqlens.shape)} on {cu_seqlens.device}: [B + 1] on {hidden.device} is wanted"
        )
    on_host = cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling() and not valueless(cu_seqlens)
    if on_host and (int(cu_seqlens[-1]) != len(hidden) or bool((cu_seqlens.diff() < 0).any())):
        raise ValueError(f"cu_seqlens must rise from 0 to the {len(hidden)} tokens of hidden")
    if backend.runs("pool", "cuda", hidden.device, _against(hidden, cu_seqlens)):
        save = torch.is_grad_enabled() and hidden.requires_grad
        return _pool(hidden, cu_seqlens, POOLINGS.index(mode), normalize, save)[0]
    return reference.pool(hidden, cu_seqlens, mode, normalize)


def _against(hidden: Tensor, cu_seqlens: Tensor) -> tuple[str, ...]:
    reasons = dtype_reasons(hidden=hidden)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        reasons.append(f"cu_seqlens is {cu_seqlens.dtype}, not int32 or int64")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(hidden):
        reasons.append("hidden is inside torch.func")
    return tuple(reasons)


def _forward(hidden, cu_seqlens, mode, normalize, save):
    hidden, cu_seqlens = hidden.contiguous(), cu_seqlens.int().contiguous()
    results = _forward_fake(hidden, cu_seqlens, mode, normalize, save)
    shared = _shared_arguments(hidden.shape[0], hidden.dtype, cu_seqlens, mode, normalize, *results)
    extension.required().pool_cuda(hidden.data_ptr(), *shared, *library.launch_on(hidden))
    return results


def _forward_fake(hidden, cu_seqlens, mode, normalize, save):
    shape = (cu_seqlens.shape[0] - 1, hidden.shape[1])
    out = hidden.new_empty(shape, dtype=torch.float32)
    # An op's results are tensors; nothing saved is an empty one.
    places = hidden.new_empty(shape if save and POOLINGS[mode] == "max" else 0, dtype=torch.int32)
    return out, places, hidden.new_empty(shape[0] if save and normalize else 0, dtype=torch.float32)


def _backward(dy, cu_seqlens, out, places, scales, tokens, dtype, mode, normalize):
    dy, cu_seqlens = dy.contiguous(), cu_seqlens.int().contiguous()
    dx = _backward_fake(dy, cu_seqlens, out, places, scales, tokens, dtype, mode, normalize)
    shared = _shared_arguments(tokens, dtype, cu_seqlens, mode, normalize, out, places, scales)
    extension.required().pool_backward_cuda(dy.data_ptr(), *shared, dx.data_ptr(), *library.launch_on(dy))
    return dx


def _backward_fake(dy, cu_seqlens, out, places, scales, tokens, dtype, mode, normalize):
    return dy.new_empty(tokens, dy.shape[1], dtype=dtype)


def _shared_arguments(tokens, dtype, cu_seqlens, mode, normalize, out, places, scales):
    """What the extension's two functions have in common; nothing here is a new tensor that would have to be kept."""
    saved = (x.data_ptr() if x.numel() else 0 for x in (out, places, scales))
    name = str(dtype).removeprefix("torch.")
    return cu_seqlens.data_ptr(), tokens, *out.shape, _CODES[mode], normalize, name, *saved


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, cu_seqlens: Tensor, mode: int, normalize: bool, save: bool) -> tuple:
        out, places, scales = below_autograd(_pool, hidden, cu_seqlens, mode, normalize, save)
        ctx.save_for_backward(cu_seqlens, out, places, scales)
        ctx.mark_non_differentiable(places, scales)
        ctx.options = (hidden.shape[0], hidden.dtype, mode, normalize)
        return out, places, scales

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple:
        return _pool_grad(dy, *ctx.saved_tensors, *ctx.options), None, None, None, None


_pool = define(
    "pool(Tensor hidden, Tensor cu_seqlens, int mode, bool normalize, bool save) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    _Pool,
)
_pool_grad = define(
    "pool_backward(Tensor dy, Tensor cu_seqlens, Tensor out, Tensor places, Tensor scales, SymInt tokens, "
    "ScalarType dtype, int mode, bool normalize) -> Tensor",
    _backward,
    _backward_fake,
)
