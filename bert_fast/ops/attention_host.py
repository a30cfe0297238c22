"""attention on CPU by the C++ extension: every head of every sequence where it lies, without copies or padding."""

import functools

import torch
from torch import Tensor

from bert_fast import backend, extension
from bert_fast.ops.host_threads import host_threads, host_threads_reason
from bert_fast.ops.library import addressable

# As the extension's code on the CPU calls what it computes in.
HOST_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def host_attention_runs(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, bias: Tensor | None, key_mask: Tensor | None, p: float
) -> bool:
    """Whether :func:`host_attention` covers a call; what speaks against it is kept for ``backend.decisions``."""
    if q.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    against = []
    if backend.requested() == "reference":
        against.append("PyTorch's ops were asked for")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in HOST_DTYPES:
        against.append(f"q, k and v are {q.dtype}, {k.dtype}, {v.dtype}, not all float32 or all bfloat16")
    if torch.is_grad_enabled():
        against.append("gradients are enabled")
    if bias is not None and not _fits(bias, q, cu_seqlens):
        against.append(f"the bias is {bias.dtype} {list(bias.shape)}, not floating [B or 1, N or 1, S, S]")
    if p > 0:
        against.append("there is dropout")
    if q.dim() != 3 or not q.shape == k.shape == v.shape or q.shape[1] == 0:
        against.append(f"q, k and v are {list(q.shape)}, {list(k.shape)}, {list(v.shape)}, not all [T, N, D]")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() == 0 or cu_seqlens.is_floating_point():
        against.append(f"cu_seqlens are {cu_seqlens.dtype} {list(cu_seqlens.shape)}, not integers [B + 1]")
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != q.shape[:1]):
        against.append(f"key_mask is {key_mask.dtype} {list(key_mask.shape)}, not bool [T]")
    tensors = [q, k, v, cu_seqlens, *(x for x in (bias, key_mask) if x is not None)]
    if any(x.device.type != "cpu" for x in tensors):
        against.append("a tensor is not on the CPU")
    if not addressable(*tensors):
        against.append("the tensors are being traced or transformed")
    general = host_attention_reason()
    if general is not None:
        against.append(general)
    backend.note("attention", "reference" if against else "extension", "extension", against)
    return not against


def host_attention_reason() -> str | None:
    """Why the extension's attention cannot run in this process; None if it can."""
    if extension.module() is None:
        return extension.unavailable_reason()
    if not host_attention_instructions():
        return "the processor has neither AVX-512 nor AVX2, or the compiler was too old for them"
    return host_threads_reason()


def _fits(bias: Tensor, q: Tensor, cu_seqlens: Tensor) -> bool:
    """Whether a bias has the shape that attention takes; that S is long enough is checked with the lengths."""
    if bias.dim() != 4 or q.dim() != 3 or not bias.is_floating_point():
        return False
    sizes = ((1, cu_seqlens.shape[0] - 1), (1, q.shape[1]))
    return all(size in allowed for size, allowed in zip(bias.shape[:2], sizes, strict=True))


def host_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    key_mask: Tensor | None,
    instructions: str = "",
    *,
    bias: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """See :func:`bert_fast.ops.attention`; ``[T, N, D]``. Rows beyond the last sequence's end are 0.

    The result depends neither on the number of threads nor on the other sequences of the batch.

    Args:
        instructions: "avx512bf16" (products of 16-bit pairs; weights are rounded to bfloat16, as in PyTorch's own),
            "avx512" or "avx2" for this one; the best there is by default.

    Raises:
        ValueError: ``cu_seqlens`` does not rise from 0 to at most T, or a sequence is longer than ``bias``.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    cu_seqlens = cu_seqlens.to(torch.int32).contiguous()
    tokens, heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device="cpu")
    covered = int(cu_seqlens[-1])
    if covered > tokens:
        raise ValueError(f"cu_seqlens must end within the {tokens} rows of q, got {covered}")
    if covered < tokens:
        out[covered:] = 0
    mask = None if key_mask is None else key_mask.contiguous()
    added, steps = None, [0, 0, 0]
    if bias is not None:
        longest = int(cu_seqlens.diff().max()) if cu_seqlens.shape[0] > 1 else 0
        if min(bias.shape[2:]) < longest:
            raise ValueError(
                f"bias must be at least {longest} by {longest}, the longest sequence, not {list(bias.shape)}"
            )
        added = bias.detach().float()
        added = added if added.stride(3) == 1 else added.contiguous()
        steps = [0 if size == 1 else step for size, step in zip(added.shape[:3], added.stride(), strict=False)]
    extension.required().attention(
        *((x.data_ptr(), x.stride(0) * x.element_size(), x.stride(1) * x.element_size()) for x in (q, k, v, out)),
        cu_seqlens.data_ptr(),
        cu_seqlens.shape[0] - 1,
        heads,
        head_dim,
        0 if mask is None else mask.data_ptr(),
        (0 if added is None else added.data_ptr(), *steps),
        -1 if window is None else window,
        scale,
        HOST_DTYPES[q.dtype],
        *host_threads(),
        instructions,
    )
    return out


@functools.cache
def host_attention_instructions() -> str:
    """The vector instructions it is written in that this machine has: see :func:`host_attention`; "" without any."""
    return "" if extension.module() is None else extension.required().attention_instructions()
