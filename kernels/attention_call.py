"""What the attention launchers share on the host: checked arguments, strides as kernels want them, dropout's numbers.

T tokens, B sequences, S longest sequence, N heads, D head dim.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .common import LOG2E, dot_precision, dropout_scale, dropout_threshold, next_power_of_2

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
DROPOUT_KEYS = 65536  # a probability's index for dropout is (row * N + head) * 65536 + key


def attention_schedule(cu_seqlens: Tensor) -> Tensor:
    """Longest-first order of a batch's sequences, for the ``schedule`` argument: int32 ``[2, B + 1]`` on its device.

    Row 0 holds the cumulative lengths in that order, row 1 which sequence comes when. Made once a batch, without
    waiting for the device, it serves every layer, forward and backward; the programs that take longest then start
    first and a ragged batch ends with short ones.
    """
    lengths, order = torch.sort(cu_seqlens.diff(), descending=True, stable=True)
    schedule = torch.zeros(2, cu_seqlens.numel(), dtype=torch.int32, device=cu_seqlens.device)
    schedule[0, 1:] = lengths.cumsum(0)
    schedule[1, :-1] = order
    return schedule


@dataclasses.dataclass(frozen=True)
class Call:
    """One attention call: its sizes and everything that forward and backward kernels take alike."""

    tokens: int
    batch: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    cu_seqlens: Tensor
    cumulative: Tensor  # cu_seqlens in the order of the schedule
    order: Tensor | None
    bias: Tensor | None
    key_mask: Tensor | None
    seed: Tensor | None
    longest: int
    scale: float
    p: float
    site: int

    @property
    def block_d(self) -> int:
        return max(16, next_power_of_2(self.head_dim))

    @property
    def exact(self) -> bool:
        """Whether scores are kept in natural units, not those of exp2: see attention_tiles.exponential."""
        return self.dtype == torch.float32

    @property
    def dropout(self) -> bool:
        return self.seed is not None

    @property
    def planned(self) -> dict[str, bool]:
        """What a plan depends on, beside sizes and dtype."""
        biased = self.bias is not None
        return {"dropout": self.dropout, "masked": biased or self.key_mask is not None, "bias": biased}

    def arguments(self) -> dict[str, object]:
        """Keyword arguments common to all kernels that compute scores."""
        bias = self.bias
        # A dimension of 1 is shared: stride 0 serves every sequence or head.
        strides = (0, 0, 0, 0) if bias is None else (
            bias.stride(0) if bias.shape[0] > 1 else 0,
            bias.stride(1) if bias.shape[1] > 1 else 0,
            bias.stride(2),
            bias.stride(3),
        )  # fmt: skip
        return {
            "cu_ptr": self.cu_seqlens, "order_ptr": self.order, "bias_ptr": bias, "key_mask_ptr": self.key_mask,
            "seed_ptr": self.seed, "tokens": self.tokens, "batch": self.batch, "longest": self.longest,
            "bias_batch": strides[0], "bias_head": strides[1], "bias_query": strides[2], "bias_key": strides[3],
            "score_scale": self.scale if self.exact else self.scale * LOG2E.value,
            "keep_scale": dropout_scale(self.p), "threshold": dropout_threshold(self.p), "site": self.site,
            "HEADS": self.heads, "D": self.head_dim, "BLOCK_D": self.block_d,
            "PRECISION": dot_precision(self.dtype), "EXACT": self.exact,
        }  # fmt: skip


def check_call(
    named: dict[str, Tensor],
    cu_seqlens: Tensor,
    *,
    scale: float,
    bias: Tensor | None,
    key_mask: Tensor | None,
    p: float,
    seed: Tensor | None,
    site: int,
    max_seqlen: int,
    schedule: Tensor | None,
) -> Call:
    """Checks a call's arguments and gathers them. ``named``: q first, then every tensor shaped like it, by name.

    Raises:
        ValueError: naming the argument, what it was and what is allowed.
    """
    q = named["q"]
    if q.dim() != 3 or q.shape[2] % 8 != 0 or not 8 <= q.shape[2] <= 128:
        raise ValueError(f"q must be [T, N, D] with D a multiple of 8 from 8 to 128, not {tuple(q.shape)}")
    if q.dtype not in DTYPES:
        raise ValueError(f"q must be one of {', '.join(map(str, DTYPES))}, not {q.dtype}")
    for name, tensor in named.items():
        if tensor.shape != q.shape or tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(
                f"{name} must be like q, {tuple(q.shape)} {q.dtype} on {q.device}, "
                f"not {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )
        if tensor.stride(2) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension, not of stride {tensor.stride(2)}")
    tokens, heads, head_dim = q.shape
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or not cu_seqlens.is_contiguous():
        raise ValueError(f"cu_seqlens must be a contiguous int32 vector, not {cu_seqlens.dtype} {cu_seqlens.shape}")
    batch = cu_seqlens.numel() - 1
    if batch < 0:
        raise ValueError("cu_seqlens must have B + 1 elements, not none")
    if not scale > 0:
        raise ValueError(f"scale must be positive, not {scale}")
    if bias is not None:
        sizes = bias.shape
        square = bias.dim() == 4 and sizes[2] == sizes[3] >= max_seqlen
        if not square or sizes[0] not in (1, batch) or sizes[1] not in (1, heads):
            raise ValueError(
                f"bias must be [{batch} or 1, {heads} or 1, S, S] with S at least max_seqlen = {max_seqlen}, "
                f"not {tuple(sizes)}"
            )
        if bias.dtype not in DTYPES:
            raise ValueError(f"bias must be one of {', '.join(map(str, DTYPES))}, not {bias.dtype}")
    if key_mask is not None:
        if key_mask.dtype != torch.bool or key_mask.shape != (tokens,):
            raise ValueError(f"key_mask must be bool [{tokens}], not {key_mask.dtype} {tuple(key_mask.shape)}")
        key_mask = key_mask.contiguous().view(torch.uint8)
    if p > 0 and (seed is None or seed.dtype != torch.int64 or seed.numel() != 1):
        raise ValueError(f"seed must be an int64 tensor of one element where p > 0, not {seed}")
    if p > 0 and max_seqlen > DROPOUT_KEYS:
        raise ValueError(f"max_seqlen must be at most {DROPOUT_KEYS} where p > 0, not {max_seqlen}")
    here = {"cu_seqlens": cu_seqlens, "bias": bias, "key_mask": key_mask, "seed": seed, "schedule": schedule}
    for name, tensor in here.items():
        if tensor is not None and tensor.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, not {tensor.device}")
    if schedule is not None and (
        schedule.dtype != torch.int32 or schedule.shape != (2, batch + 1) or schedule.stride(1) != 1
    ):
        raise ValueError(
            f"schedule must come from attention_schedule, not be {schedule.dtype} {tuple(schedule.shape)} of strides "
            f"{schedule.stride()}"
        )
    return Call(
        tokens=tokens, batch=batch, heads=heads, head_dim=head_dim, dtype=q.dtype, cu_seqlens=cu_seqlens,
        cumulative=cu_seqlens if schedule is None else schedule[0], order=None if schedule is None else schedule[1],
        bias=bias, key_mask=key_mask, seed=seed if p > 0 else None, longest=max_seqlen, scale=scale, p=p, site=site,
    )  # fmt: skip


def strides(**named: Tensor) -> dict[str, int]:
    """Kernel arguments for tensors [T, N, D]: ``<name>_head``, ``<NAME>_TOKEN`` and the VECTOR that divides the former.

    Row strides are compile-time constants (a model has one layout), head strides are not (they may depend on T). The
    compiler must see that head strides keep 16-byte alignment, so they go in divided by 8 and come out multiplied.
    """
    vector = 8 if all(t.stride(0) % 8 == 0 and t.stride(1) % 8 == 0 for t in named.values()) else 1
    found = {"VECTOR": vector}
    for name, tensor in named.items():
        found[f"{name}_head"] = tensor.stride(1) // vector
        found[f"{name.upper()}_TOKEN"] = tensor.stride(0)
    return found
