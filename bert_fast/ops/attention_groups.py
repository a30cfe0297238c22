"""How PyTorch's attention runs over a packed batch: sequences of similar length together, so that little is padding."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_fast.ops.attention_rows import Slots, attend_with_dropout
from bert_fast.ops.library import autocast_dtype
from bert_fast.reference import within_window

# Lengths are rounded up to this before they are grouped: fewer, larger calls against a little padding.
GRANULE = 16
_WIDE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class _Group:
    """Sequences that run in one call: ``rows [b, L]`` of the packed batch, or one sequence's slice of it."""

    rows: Tensor | slice
    key_mask: Tensor | None

    def shape(self) -> tuple[int, int]:
        """Sequences and slots of each, ``(b, L)``."""
        return (1, self.rows.stop - self.rows.start) if isinstance(self.rows, slice) else tuple(self.rows.shape)

    def gather(self, x: Tensor) -> Tensor:
        """``x [T, N, D]`` -> ``[b, N, L, D]``; a view where the group is one sequence."""
        if isinstance(self.rows, slice):
            return x[self.rows].unsqueeze(0).transpose(1, 2)
        return x.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape).transpose(1, 2)


class AttentionGroups:
    """The plan of one packed batch, made once and used by every layer: which sequences run together.

    Args:
        cu_seqlens: int32 ``[B + 1]``, on the CPU.
        key_mask: bool ``[T]``; a key that is False is seen by no query.
    """

    def __init__(self, cu_seqlens: Tensor, key_mask: Tensor | None = None) -> None:
        self._cu_seqlens, self._key_mask = cu_seqlens, key_mask
        self._made = False
        self._slots_made: Slots | None = None

    def _make(self) -> None:
        cu_seqlens, key_mask = self._cu_seqlens, self._key_mask
        bounds = cu_seqlens.tolist()
        by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for start, end in zip(bounds, bounds[1:], strict=False):
            if end > start:
                by_length[-(-(end - start) // GRANULE)].append((start, end))
        self._groups: list[_Group] = []
        self._restore = torch.empty(bounds[-1], dtype=torch.int64, device=cu_seqlens.device)
        offset = 0
        for members in by_length.values():
            longest = max(end - start for start, end in members)
            for index, (start, end) in enumerate(members):
                first = offset + index * longest
                self._restore[start:end] = torch.arange(first, first + end - start, device=cu_seqlens.device)
            self._groups.append(_group(members, longest, key_mask, cu_seqlens.device))
            offset += len(members) * longest
        self._in_order = len(self._groups) == 1 and offset == bounds[-1]
        self._made = True

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        p: float,
        bias: Tensor | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attention of ``q, k, v [T, N, D]`` within each sequence: ``[T, N, D]``; rows that see no key are 0.

        ``bias [1, N or 1, S, S]`` is the same for all sequences; ``window`` as :func:`bert_fast.ops.attention`'s.
        Rows beyond the last sequence's end are allowed; what comes back there is without meaning.
        """
        if not self._made:
            self._make()
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)) and q.shape[0] == len(self._restore):
            return self._attend_with_gradients(q, k, v, scale, p, bias, window)
        if not self._groups:
            return q.new_zeros(q.shape)
        operands = ([group.gather(x) for x in (q, k, v)] for group in self._groups)
        joined = self._run(operands, scale, p, bias, window)
        surplus = q.shape[0] - self._restore.shape[0]
        if self._in_order and not surplus:
            return joined
        return joined.index_select(0, F.pad(self._restore, (0, surplus)) if surplus else self._restore)

    def _attend_with_gradients(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
        p: float,
        bias: Tensor | None,
        window: int | None,
    ) -> Tensor:
        if not self._in_order:
            slots = self._slots()
            q, k, v = (slots.spread(x) for x in (q, k, v))
        shapes = [group.shape() for group in self._groups]
        pieces = zip(*(x.split([b * length for b, length in shapes]) for x in (q, k, v)), strict=True)
        operands = (
            [x.unflatten(0, shape).transpose(1, 2) for x in piece] for shape, piece in zip(shapes, pieces, strict=True)
        )
        # PyTorch's own takes 16 bits up to float32 for the weights.
        own = p > 0 and self._key_mask is None and q.dtype in _WIDE and autocast_dtype(q.device) is None
        joined = self._run(operands, scale, p, bias, window, own)
        return joined if self._in_order else slots.collect(joined)

    def _run(
        self,
        operands: Iterable[list[Tensor]],
        scale: float | None,
        p: float,
        bias: Tensor | None,
        window: int | None,
        own: bool = False,
    ) -> Tensor:
        """Every group's attention over its ``q, k, v [b, N, L, D]``: all slots one after another, ``[slots, N, D]``.

        ``own``: dropout of our own, where nothing but padding is hidden.
        """
        outputs = []
        for group, given in zip(self._groups, operands, strict=True):
            mask = _scores(group.key_mask, given[0], bias, window)
            if own and mask is group.key_mask:
                out = attend_with_dropout(given[0], given[1], given[2], mask, scale, p)
            else:
                out = F.scaled_dot_product_attention(*given, attn_mask=mask, dropout_p=p, scale=scale)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _slots(self) -> Slots:
        if self._slots_made is None:
            device = self._restore.device
            rows = [
                torch.arange(group.rows.start, group.rows.stop, device=device)
                if isinstance(group.rows, slice)
                else group.rows.flatten()
                for group in self._groups
            ]
            flat = torch.cat(rows)
            counts = torch.zeros(len(flat), dtype=torch.bool, device=device)
            counts[self._restore] = True
            self._slots_made = Slots(flat, counts, self._restore)
        return self._slots_made


def _scores(seen: Tensor | None, q: Tensor, bias: Tensor | None, window: int | None) -> Tensor | None:
    """What one call adds to its scores ``[b, N, L, L]``: bool without a bias (what is seen); None for nothing."""
    length = q.shape[2]
    if window is not None and window < length - 1:
        near = within_window(length, window, q.device)[None, None]
        seen = near if seen is None else seen & near
    if bias is None:
        return seen
    bias = bias[..., :length, :length].to(q.dtype)
    return bias if seen is None else bias.masked_fill(~seen, -math.inf)


def _group(members: list[tuple[int, int]], longest: int, key_mask: Tensor | None, device: torch.device) -> _Group:
    if len(members) == 1:
        rows = slice(*members[0])
        mask = None if key_mask is None else key_mask[rows][None, None, None]
        return _Group(rows, mask)
    starts, ends = (torch.tensor(bound, device=device).unsqueeze(1) for bound in zip(*members, strict=True))
    slots = starts + torch.arange(longest, device=device)
    present = slots < ends
    rows = torch.where(present, slots, starts)
    if key_mask is not None:
        mask = present & key_mask[rows]
    elif present.all():
        return _Group(rows, None)
    else:
        mask = present
    return _Group(rows, mask[:, None, None, :])
