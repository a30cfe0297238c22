"""From the masks users pass to a layout: which tokens get rows, and what they may see."""

import torch
from torch import Tensor

from bert_fast.ops.library import valueless
from bert_fast.packing import Layout, layout_of_dense, layout_of_mask


def layout_from_mask(
    attention_mask: Tensor | None,
    batch: int,
    seqlen: int,
    device: torch.device,
    *,
    heads: int,
    keep_first: bool,
    keep: Tensor | None,
    exact: bool,
    dense: bool,
) -> Layout:
    """The layout of a padded batch.

    Args:
        attention_mask: ``[B, S]`` (nonzero is visible), or ``[B, S, S]`` / ``[B or 1, N or 1, S or 1, S]``, bool or
            integer (nonzero is visible) or additive float (-inf or the dtype's minimum hides).
        heads: N.
        keep_first: the first place of every sequence is read (by the pooler) even if hidden.
        keep: bool ``[B, S]``, other places that are read.
        exact: hidden places are returned as computed.
        dense: every place gets a row even so (attention probabilities are asked for).

    Raises:
        ValueError: the mask has another shape, or a float mask of 3 or 4 dimensions holds 0 and 1.
    """
    if attention_mask is None:
        return layout_of_dense(batch, seqlen, device)
    attention_mask = attention_mask.to(device)
    if attention_mask.dim() in (3, 4):
        bias = _additive(attention_mask, batch, heads, seqlen).expand(-1, -1, seqlen, -1)
        return layout_of_dense(batch, seqlen, device, bias)
    if attention_mask.shape != (batch, seqlen):
        raise ValueError(
            f"attention_mask must be [batch, seqlen] = [{batch}, {seqlen}], or have 3 or 4 dimensions, "
            f"not {list(attention_mask.shape)}"
        )
    visible = attention_mask != 0
    if keep_first:
        first = torch.zeros_like(visible)
        first[:, :1] = True
        keep = first if keep is None else keep | first
    layout = layout_of_mask(visible, keep=keep, exact=exact or dense)
    return layout if exact or not dense else layout.with_zeroed_hidden()


def _additive(given: Tensor, batch: int, heads: int, seqlen: int) -> Tensor:
    mask = given[:, None] if given.dim() == 3 else given
    allowed = ((1, batch), (1, heads), (1, seqlen), (seqlen,))
    if any(size not in sizes for size, sizes in zip(mask.shape, allowed, strict=True)):
        raise ValueError(
            f"attention_mask of 3 or 4 dimensions must be [batch, seqlen, seqlen] or [batch, heads, seqlen, seqlen] = "
            f"[{batch}, {heads}, {seqlen}, {seqlen}], where batch, heads and the first seqlen may be 1, "
            f"not {list(given.shape)}"
        )
    if not mask.is_floating_point():
        return torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -torch.inf)
    if mask.device.type == "cpu" and mask.numel() and not (torch.compiler.is_compiling() or valueless(mask)):
        low, high = torch.aminmax(mask)
        if low == 0 and high == 1:
            raise ValueError(
                "attention_mask of 3 or 4 dimensions in a float dtype is added to the scores (0 visible, -inf hidden); "
                "this one holds 0 and 1: pass it as bool"
            )
    return mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
