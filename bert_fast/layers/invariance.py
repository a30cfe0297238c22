"""batch_invariant: a sequence's bits depend neither on the batch it is in nor on its place there.

A library's matrix product chooses how it sums by the number of rows (measured: one to three rows have bits of their
own). Here whatever works on rows sees ``ROW_BLOCK`` of them every time, the last of them filled up with zeros, so that
there is nothing to choose by. Attention is the extension's, which sums each query's keys by their number alone.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_fast import backend, derived
from bert_fast.ops.attention_host import host_attention_reason
from bert_fast.ops.library import autocast_dtype
from bert_fast.ops.linear import onednn_runs
from bert_fast.packing import Layout

# A multiple of 64, so that every block of a tensor is aligned as its first is.
ROW_BLOCK = 64


def invariant(layout: Layout) -> Layout:
    """``layout``, of which a forward pass is to give the same bits whatever else is in it.

    Raises:
        RuntimeError: it came of a mask of 3 or 4 dimensions.
    """
    if layout.bias is not None:
        raise RuntimeError("batch_invariant=True cannot hold with an attention_mask of 3 or 4 dimensions: [B, S] can")
    return replace(layout, batch_invariant=True)


def by_rows(fixed: bool, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """``function(*rows)``, which works on each row by itself; where ``fixed``, on ``ROW_BLOCK`` rows at a time.

    Args:
        rows: tensors ``[T, ...]``.
    """
    count = rows[0].shape[0]
    if not fixed or count == 0:
        return function(*rows)
    surplus = -count % ROW_BLOCK
    if surplus:
        rows = tuple(F.pad(x, (*(0, 0) * (x.dim() - 1), 0, surplus)) for x in rows)
    blocks = zip(*(x.contiguous().split(ROW_BLOCK) for x in rows), strict=True)
    results = [function(*block) for block in blocks]
    return (results[0] if len(results) == 1 else torch.cat(results))[:count]


def rows_in_blocks(rows: int) -> int:
    """The least multiple of ``ROW_BLOCK`` that is at least ``rows``."""
    return -(-rows // ROW_BLOCK) * ROW_BLOCK


def check_invariance(x: Tensor, layout: Layout, training: bool, probabilities: bool) -> None:
    """Make sure that an encoder can keep the promise for rows ``x [T, H]``.

    Raises:
        RuntimeError: it cannot, with every reason.
    """
    against = []
    if x.device.type != "cpu":
        against.append(f"the model is on {x.device.type}, where products choose by the number of rows: use the CPU")
    if training:
        against.append("the model is in training mode: call eval()")
    if torch.is_grad_enabled():
        against.append("gradients are enabled: call it under torch.no_grad()")
    elif not derived.allowed():
        against.append("it is compiled, traced, exported or transformed, or there are hooks on all modules")
    if autocast_dtype(x.device) is not None:
        against.append("autocast is on")
    if x.device.type == "cpu":
        against += _missing(x)
    if layout.key_mask is not None:
        against.append(
            "a place that the mask hides is to be computed: for hidden_positions='exact' ('zero' is fine), for a "
            "label, or for a pooler, which reads the first place (pad on the right)"
        )
    if layout.rotary is not None or layout.window is not None or layout.local is not None:
        against.append("rotary positions and windows are not covered")
    if probabilities:
        against.append("output_attentions are asked for")
    if against:
        raise RuntimeError(f"batch_invariant=True cannot hold here: {'; '.join(against)}")


def _missing(x: Tensor) -> list[str]:
    against = []
    if backend.requested() == "reference" or backend.has_kernels(x.device):
        against.append("another backend than the extension was asked for attention")
    reason = host_attention_reason()
    if reason is not None:
        against.append(f"it needs the extension's attention: {reason}")
    if x.dtype not in (torch.float32, torch.bfloat16) or not onednn_runs(x.dtype):
        against.append(f"oneDNN and the extension do not both compute in {x.dtype} here")
    return against
