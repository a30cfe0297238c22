"""scaled_masked_softmax: attention probabilities, for when they are asked for."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bert_fast import backend, reference
from bert_fast.ops import stand_ins
from bert_fast.ops.library import below_autograd, define, dtype_reasons

MAX_KEYS = 65536


def scaled_masked_softmax(
    scores: Tensor,
    mask: Tensor | None = None,
    scale: float = 1.0,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    site: int = 0,
) -> Tensor:
    """``dropout(softmax(scale * scores + mask))``.

    Args:
        scores: ``[B, N, Q, K]``.
        mask: additive, broadcastable to ``scores``; at or below half its dtype's minimum it hides. The kernel is only
            for masks that need no gradient.
        p, seed, site: dropout. The kernel needs ``seed``, an int64 tensor of one element on the same device.

    Returns:
        ``[B, N, Q, K]`` in the dtype that scores and mask promote to; a row with no visible key is 0.
    """
    if (p == 0 or seed is not None) and _kernel_runs(scores, mask):
        return _softmax(scores, mask, seed if p > 0 else None, scale, p, site)[0]
    return reference.scaled_masked_softmax(scores, mask, scale, p=p, seed=seed, site=site)


def _kernel_runs(scores: Tensor, mask: Tensor | None) -> bool:
    against = dtype_reasons(scores=scores, mask=mask)
    if scores.dim() != 4 or (mask is not None and mask.dim() != 4):
        against.append("scores or mask have not 4 dimensions")
    elif scores.shape[3] > MAX_KEYS:
        against.append(f"there are {scores.shape[3]} keys, over {MAX_KEYS}")
    if mask is not None and mask.requires_grad:
        against.append("the mask needs a gradient")
    return backend.runs("scaled_masked_softmax", "triton", scores.device, tuple(against))


def _dtype(scores: Tensor, mask: Tensor | None) -> torch.dtype:
    return scores.dtype if mask is None else torch.promote_types(scores.dtype, mask.dtype)


def _forward(scores, mask, seed, scale, p, site):
    from bert_fast.kernels.softmax import scaled_masked_softmax_forward

    dropped, probs = scaled_masked_softmax_forward(scores, mask, scale, p=p, seed=seed, site=site)
    # An op may not return one tensor twice: without dropout its result is the probabilities.
    return dropped, probs if dropped is not probs else probs.new_empty(0)


def _fake(scores, mask, seed, scale, p, site):
    dropped = scores.new_empty(scores.shape, dtype=_dtype(scores, mask))
    return dropped, dropped.new_empty(dropped.shape if p > 0 else (0,))


def _backward(grads, probs, seed, scale, p, site, dtype):
    from bert_fast.kernels.softmax import scaled_masked_softmax_backward

    return scaled_masked_softmax_backward(grads, probs, scale, p=p, seed=seed, site=site, dtype=dtype)


def _backward_fake(grads, probs, seed, scale, p, site, dtype):
    return probs.new_empty(probs.shape, dtype=dtype)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores, mask, seed, scale, p, site) -> tuple[Tensor, Tensor]:
        dropped, probs = below_autograd(_softmax, scores, mask, seed, scale, p, site)
        ctx.save_for_backward(probs if p > 0 else dropped, seed)
        ctx.mark_non_differentiable(probs)
        ctx.set_materialize_grads(False)
        ctx.scalars, ctx.dtype = (scale, p, site), scores.dtype
        return dropped, probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor | None, _: None) -> tuple:
        if grads is None:
            return (None,) * 6
        return _softmax_grad(grads, *ctx.saved_tensors, *ctx.scalars, ctx.dtype), *[None] * 5


_softmax = define(
    "scaled_masked_softmax(Tensor scores, Tensor? mask, Tensor? seed, float scale, float p, int site) "
    "-> (Tensor, Tensor)",
    _forward,
    _fake,
    _Softmax,
    instead=stand_ins.scaled_masked_softmax,
)
_softmax_grad = define(
    "scaled_masked_softmax_backward(Tensor grads, Tensor probs, Tensor? seed, float scale, float p, int site, "
    "ScalarType dtype) -> Tensor",
    _backward,
    _backward_fake,
    instead=stand_ins.scaled_masked_softmax_backward,
    of="scaled_masked_softmax",
)
