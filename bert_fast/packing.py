"""Packed batches: the tokens of several sequences one after another, and how they lie in the padded world."""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bert_fast import backend, extension, ops, reference
from bert_fast.ops.library import valueless


@dataclass(frozen=True)
class PackedBatch:
    """A batch without padding, as a collator makes it: the model takes it in place of ``input_ids``.

    Attributes:
        input_ids: int64 ``[T]``, the tokens of all sequences one after another (None if ``inputs_embeds`` is given).
        cu_seqlens: int32 ``[B + 1]`` (int64 is converted); sequence b owns rows ``cu_seqlens[b]:cu_seqlens[b + 1]``.
            It ends at T, which on a GPU nobody checks: spare rows, as for a CUDA graph, are a sequence of their own.
        max_seqlen: the longest sequence's length, or more.
        position_ids: int64 ``[T]``.
        token_type_ids: int64 ``[T]``, or None for all 0.
        inputs_embeds: ``[T, H]``, in place of ``input_ids``.

    It is a pytree, and ``.to()`` and ``.pin_memory()`` move all of it.
    """

    input_ids: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    position_ids: Tensor
    token_type_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None

    @classmethod
    def from_sequences(
        cls,
        input_ids: Sequence[Sequence[int] | np.ndarray],
        token_type_ids: Sequence[Sequence[int] | np.ndarray] | None = None,
    ) -> "PackedBatch":
        """Pack lists (or arrays) of token ids, one per sequence.

        Raises:
            ValueError: ``token_type_ids`` has other lengths than ``input_ids``.
        """
        lengths = np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids))
        if token_type_ids is not None and [len(row) for row in token_type_ids] != lengths.tolist():
            raise ValueError("token_type_ids must have the lengths of input_ids, sequence by sequence")
        types = None if token_type_ids is None else _concatenate(token_type_ids)
        return cls.from_arrays(_concatenate(input_ids), lengths, types)

    @classmethod
    def from_arrays(
        cls, input_ids: np.ndarray, lengths: Sequence[int] | np.ndarray, token_type_ids: np.ndarray | None = None
    ) -> "PackedBatch":
        """Sequences that lie one after another already: integers ``[T]``, and each one's tokens ``[B]``.

        Raises:
            ValueError: ``lengths`` do not add up to T, or ``token_type_ids`` are not ``[T]``.
        """
        sizes = np.asarray(lengths, dtype=np.int64)
        cu_seqlens = np.zeros(len(sizes) + 1, dtype=np.int32)
        np.cumsum(sizes, out=cu_seqlens[1:])
        if cu_seqlens[-1] != len(input_ids):
            raise ValueError(
                f"lengths must add up to the {len(input_ids)} tokens of input_ids, not to {cu_seqlens[-1]}"
            )
        if token_type_ids is not None and len(token_type_ids) != len(input_ids):
            raise ValueError(f"token_type_ids must be [{len(input_ids)}], not [{len(token_type_ids)}]")
        position_ids = np.arange(len(input_ids), dtype=np.int64) - np.repeat(cu_seqlens[:-1], sizes)
        return cls(
            input_ids=torch.from_numpy(input_ids.astype(np.int64)),
            cu_seqlens=torch.from_numpy(cu_seqlens),
            max_seqlen=int(sizes.max(initial=0)),
            position_ids=torch.from_numpy(position_ids),
            token_type_ids=None if token_type_ids is None else torch.from_numpy(token_type_ids.astype(np.int64)),
        )

    @property
    def batch_size(self) -> int:
        """The number of sequences, B."""
        return self.cu_seqlens.shape[0] - 1

    def numel(self) -> int:
        """The number of tokens, T: what a trainer of `transformers` counts operations by."""
        return self.position_ids.numel()

    def to(self, *args: Any, **kwargs: Any) -> "PackedBatch":
        """Move every tensor as ``Tensor.to`` does; integers keep their dtype."""
        return self._map(lambda x: x.to(*args, **kwargs) if x.is_floating_point() else _move(x, *args, **kwargs))

    def pin_memory(self) -> "PackedBatch":
        """Copy every tensor to page-locked memory, from which a GPU copies without waiting."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "PackedBatch":
        values = (getattr(self, field.name) for field in fields(self))
        return PackedBatch(*(function(x) if isinstance(x, Tensor) else x for x in values))


def _move(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    device, _, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    return x.to(device=device, non_blocking=non_blocking) if device is not None else x


def _concatenate(rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    arrays = [np.asarray(row, dtype=np.int64) for row in rows]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)


def _flatten(batch: PackedBatch) -> tuple[list, int]:
    return [getattr(batch, name) for name in _TENSORS], batch.max_seqlen


def _unflatten(tensors: Sequence, max_seqlen: int) -> PackedBatch:
    return PackedBatch(max_seqlen=max_seqlen, **dict(zip(_TENSORS, tensors, strict=True)))


_TENSORS = [field.name for field in fields(PackedBatch) if field.name != "max_seqlen"]
pytree.register_pytree_node(PackedBatch, _flatten, _unflatten, serialized_type_name="bert_fast.PackedBatch")


def token_budget_batches(
    lengths: Sequence[int] | np.ndarray, max_tokens: int, max_sequences: int = 0
) -> list[np.ndarray]:
    """Cut sequences into batches of similar length: sorted longest first, filled up to a budget of tokens.

    Args:
        lengths: each sequence's length.
        max_tokens: the most tokens in a batch; a longer sequence is a batch of its own.
        max_sequences: the most sequences in a batch; 0 for no limit.

    Returns:
        one int64 array of sequence indices per batch; equal lengths keep their order.

    Raises:
        ValueError: ``max_tokens`` below 1, ``max_sequences`` below 0 or a negative length.
    """
    sizes = np.ascontiguousarray(lengths, dtype=np.int64)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")
    if max_sequences < 0:
        raise ValueError(f"max_sequences must be at least 0 (no limit), not {max_sequences}")
    if sizes.size and sizes.min() < 0:
        raise ValueError(f"lengths must be at least 0, not {sizes.min()}")
    module = extension.module()
    if module is None:
        return _budget_in_python(sizes, max_tokens, max_sequences)
    order, offsets = np.empty(sizes.size, dtype=np.int64), np.empty(sizes.size + 1, dtype=np.int64)
    pointers = (order.ctypes.data, offsets.ctypes.data)
    count = module.token_budget_batches(sizes.ctypes.data, sizes.size, max_tokens, max_sequences, *pointers)
    return np.split(order, offsets[1:count]) if count else []


def _budget_in_python(sizes: np.ndarray, max_tokens: int, max_sequences: int) -> list[np.ndarray]:
    order = np.argsort(-sizes, kind="stable")
    cuts, tokens, count = [], 0, 0
    for place, index in enumerate(order.tolist()):
        full = tokens + sizes[index] > max_tokens or (max_sequences and count == max_sequences)
        if count and full:
            cuts.append(place)
            tokens, count = 0, 0
        tokens, count = tokens + sizes[index], count + 1
    return np.split(order, cuts) if order.size else []


def _cuts(bounds: list[int], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of sequences with at most ``rows`` rows each, or one sequence; none is empty."""
    first, end = 0, len(bounds) - 1
    while first < end:
        left = bounds[end] - bounds[first]
        last = bisect.bisect_right(bounds, bounds[first] + rows) - 1
        if rows < left <= 2 * rows:
            half = bisect.bisect_left(bounds, bounds[first] + left / 2)
            last = min(last, half)
        last = max(last, first + 1)
        if bounds[last] > bounds[first]:
            yield first, last
        first = last


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed tensor come from, and what they may see; made once per forward pass.

    Attributes:
        cu_seqlens, max_seqlen: as in :class:`PackedBatch`.
        padded_shape: ``(B, S)`` of the padded batch; None when the caller handed a PackedBatch.
        indices: int64 ``[T]``, each row's flat place in ``[B * S]``; None when every place has a row.
        key_mask: bool ``[T]``; False marks rows that are computed though the mask hides them: no query sees them.
        zero_hidden: whether hidden places come back as zeros (else as computed).
        bias: additive scores ``[B or 1, N or 1, S, S]``, of a 3D or 4D mask or of relative positions.
        window: how many places a key may lie from a query that sees it.
        rotary: cosines and sines ``[T, D / 2]`` of the rows' rotary positions.
        local: this layout as layers see it whose attention is local: with another window, bias and rotary.
        plan: what all layers' attention over this batch shares.
        seed: of the kernels' dropout in this forward pass, int64 ``[1]``; None where PyTorch draws the masks.
        batch_invariant: whether a sequence's bits must not depend on the others.
        quantization: "int8" for layers whose products run in it where they can; None for none.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    padded_shape: tuple[int, int] | None = None
    indices: Tensor | None = None
    key_mask: Tensor | None = None
    zero_hidden: bool = False
    bias: Tensor | None = None
    plan: ops.AttentionPlan = None
    seed: Tensor | None = None
    window: int | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    local: "Layout | None" = None
    batch_invariant: bool = False
    quantization: str | None = None

    def pack(self, x: Tensor) -> Tensor:
        """``[B, S, ...]`` -> ``[T, ...]``; a tensor that is packed already stays as it is."""
        if self.padded_shape is None:
            return x
        return x.flatten(0, 1) if self.indices is None else ops.unpad_rows(x, self.indices)

    def unpack(self, x: Tensor) -> Tensor:
        """``[T, ...]`` -> ``[B, S, ...]``, zeros where there is no row; for a PackedBatch, ``x`` itself."""
        if self.padded_shape is None:
            return x
        if self.zero_hidden and self.key_mask is not None:
            x = x.masked_fill(~self.key_mask.view(-1, *[1] * (x.dim() - 1)), 0)
        if self.indices is None:
            return x.unflatten(0, self.padded_shape)
        return ops.pad_rows(x, self.indices, *self.padded_shape)

    def with_zeroed_hidden(self) -> "Layout":
        """The same layout, returning zeros at hidden places."""
        return replace(self, zero_hidden=True)

    def parts(self, rows: int, filled: Callable[[int], int]) -> Iterator[tuple[slice, int, "Layout"]]:
        """Cut the batch between sequences into parts of at most ``rows`` rows (or one longer sequence), on the CPU.

        The last two are of about one size, so that none is left with a few rows: they would cost more than their share.

        Yields the part's rows, how many more bring their number ``n`` to ``filled(n)``, and its layout.
        """
        bounds = self.cu_seqlens.tolist()
        for first, last in _cuts(bounds, rows):
            here = slice(bounds[first], bounds[last])
            surplus = filled(here.stop - here.start) - (here.stop - here.start)
            key_mask = None if self.key_mask is None else torch.nn.functional.pad(self.key_mask[here], (0, surplus))
            cu_seqlens = self.cu_seqlens[first : last + 1] - here.start
            plan = ops.attention_plan(cu_seqlens, key_mask)
            shared = Layout(
                cu_seqlens,
                self.max_seqlen,
                key_mask=key_mask,
                plan=plan,
                batch_invariant=self.batch_invariant,
                quantization=self.quantization,
            )
            part = self._with_own(shared, first, last, here, surplus)
            if self.local is not None:
                part = replace(part, local=self.local._with_own(shared, first, last, here, surplus))
            yield here, surplus, part

    def _with_own(self, part: "Layout", first: int, last: int, here: slice, surplus: int) -> "Layout":
        """``part``, of sequences ``first`` up to ``last``, with what this layout has of its own."""
        if self.bias is self.window is self.rotary is None:
            return part
        bias = self.bias if self.bias is None or self.bias.shape[0] == 1 else self.bias[first:last]
        turned = None
        if self.rotary is not None:
            cos, sin = (torch.nn.functional.pad(x[here], (0, 0, 0, surplus)) for x in self.rotary)
            turned = cos, sin
        return replace(part, bias=bias, window=self.window, rotary=turned)

    def by_distance(self, scores: Callable[[Tensor], Tensor]) -> Tensor:
        """Additive scores ``[B or 1, N, S, S]`` of what depends on how far a key lies from a query, and on that alone.

        Args:
            scores: of int64 distances of any shape, the key's place less the query's: ``[...]`` -> ``[..., N]``.
        """
        return self._by_distance(scores, self.places())

    def _by_distance(self, scores: Callable[[Tensor], Tensor], places: Tensor | None) -> Tensor:
        length, device = self.max_seqlen, self.cu_seqlens.device
        if places is not None:
            rows, _ = reference.padded_rows(self.cu_seqlens, length, places.shape[0])
            place = places[rows]
            return scores(place[:, None, :] - place[:, :, None]).permute(0, 3, 1, 2)
        place = torch.arange(length, device=device)
        table = scores(torch.arange(1 - length, max(length, 1), device=device))
        index = place[None, :] - place[:, None] + (length - 1)
        return torch.nn.functional.embedding(index, table).permute(2, 0, 1).unsqueeze(0).contiguous()

    def with_window(self, window: int) -> "Layout":
        """The same layout, of which a query sees only keys up to ``window`` places away in its padded sequence."""
        places = self.places()
        if not torch.compiler.is_compiling() and window >= self.max_seqlen - 1 and places is None:
            return self
        # The kernels take a window as scores: better made once here than by every layer.
        if not backend.has_kernels(self.cu_seqlens.device) and places is None:
            return replace(self, window=window)

        def near(distance: Tensor) -> Tensor:
            zeros = torch.zeros(distance.shape, device=distance.device)
            return zeros.masked_fill(distance.abs() > window, -torch.inf).unsqueeze(-1)

        bias = self._by_distance(near, places)
        return replace(self, bias=bias if self.bias is None else self.bias + bias)

    def with_seed(self, dropout: bool) -> "Layout":
        """The same layout with a seed for this forward pass, if there is dropout and kernels draw it."""
        device = self.cu_seqlens.device
        if not (dropout and backend.has_kernels(device)):
            return self
        return replace(self, seed=torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device))

    def prepared_for(self, x: Tensor) -> "Layout":
        """The same layout for rows like ``x``: additive scores in its dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        local = None if self.local is None else self.local.prepared_for(x)
        return self if bias is self.bias and local is self.local else replace(self, bias=bias, local=local)

    def places(self) -> Tensor | None:
        """Each row's place in its padded sequence, int64 ``[T]``; None where that is its place among the kept rows.

        Where it is not, what goes by distances (relative positions, windows) cannot go by the rows' own numbers.
        Waits for the device, but in a graph, where the places are returned whatever they are.
        """
        if self.padded_shape is None or self.indices is None:
            return None
        places = self.indices % self.padded_shape[1]
        if torch.compiler.is_compiling():
            return places
        gap = places.diff() != 1
        starts = self.cu_seqlens[1:-1].long()
        gap = torch.nn.functional.pad(gap, (1, 1)).index_fill(0, starts, False)
        return places if bool(gap.any()) else None

    def first_rows(self, x: Tensor) -> Tensor:
        """Each sequence's first row: ``[T, H]`` -> ``[B, H]``; zeros for a sequence without tokens."""
        starts = self.cu_seqlens[:-1].long()
        if not torch.compiler.is_compiling() and x.shape[0] == 0:
            return torch.nn.functional.pad(x, (0, 0, 0, starts.shape[0]))  # zeros, and still a function of x
        if self.padded_shape is not None:
            return x.index_select(0, starts)
        empty = self.cu_seqlens[1:] == self.cu_seqlens[:-1]
        return x.index_select(0, starts.clamp(max=x.shape[0] - 1)).masked_fill(empty[:, None], 0)


def layout_of_packed(batch: PackedBatch) -> Layout:
    """The layout of a batch that is packed already: nothing to compute, nothing to wait for.

    Raises:
        ValueError: its parts contradict each other. What ``cu_seqlens`` holds is only read on the CPU.
    """
    if not torch.compiler.is_compiling():
        _check(batch)
    cu_seqlens = batch.cu_seqlens.to(torch.int32)
    return Layout(cu_seqlens, batch.max_seqlen, plan=ops.attention_plan(cu_seqlens))


def _check(batch: PackedBatch) -> None:
    if (batch.input_ids is None) == (batch.inputs_embeds is None):
        raise ValueError("a PackedBatch must hold exactly one of input_ids and inputs_embeds")
    tokens = next(len(x) for x in (batch.input_ids, batch.inputs_embeds) if x is not None)
    for name, dims in (("input_ids", 1), ("inputs_embeds", 2), ("position_ids", 1), ("token_type_ids", 1)):
        x = getattr(batch, name)
        if x is not None and (x.dim() != dims or x.shape[0] != tokens):
            wanted = (f"[{tokens}]", f"[{tokens}, hidden_size]")[dims - 1]
            raise ValueError(f"{name} of a PackedBatch must be {wanted}, not {list(x.shape)}")
    cu_seqlens = batch.cu_seqlens
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens of a PackedBatch must be [sequences + 1], not {list(cu_seqlens.shape)}")
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"cu_seqlens of a PackedBatch must be int32, or int64, not {cu_seqlens.dtype}")
    if cu_seqlens.device.type != "cpu" or valueless(cu_seqlens):
        return
    lengths = cu_seqlens.diff()
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens or (lengths < 0).any():
        raise ValueError(f"cu_seqlens of a PackedBatch must rise from 0 to its {tokens} tokens")
    if lengths.numel() and int(lengths.max()) > batch.max_seqlen:
        raise ValueError(f"max_seqlen of a PackedBatch must be at least {int(lengths.max())}, not {batch.max_seqlen}")


def layout_of_dense(batch: int, seqlen: int, device: torch.device, bias: Tensor | None = None) -> Layout:
    """The layout of a padded batch of which every place is computed and visible (but for ``bias``)."""
    cu_seqlens = torch.arange(0, batch * seqlen + 1, max(seqlen, 1), dtype=torch.int32, device=device)[: batch + 1]
    if seqlen == 0:
        cu_seqlens = torch.zeros(batch + 1, dtype=torch.int32, device=device)
    return Layout(cu_seqlens, seqlen, (batch, seqlen), bias=bias, plan=ops.attention_plan(cu_seqlens))


def layout_of_mask(mask: Tensor, *, keep: Tensor | None = None, exact: bool = False) -> Layout:
    """The layout of a padded batch with a 2D mask.

    Args:
        mask: bool ``[B, S]``, True where a token is visible.
        keep: bool ``[B, S]``, places to compute even if hidden, because something reads them (pooler, labels).
        exact: compute every place, and return the hidden ones as Hugging Face does.
    """
    batch, seqlen = mask.shape
    compiling = torch.compiler.is_compiling()
    unknown = not compiling and valueless(mask)  # as many rows as there can be stand for those that it shows
    if not (exact or unknown):
        kept = mask if keep is None else mask | keep
        indices, cu_seqlens, max_seqlen, some_hidden = ops.unpad(kept, None if keep is None else mask)
        if not compiling and indices.shape[0] == batch * seqlen:
            indices = None
        key_mask = None
        if some_hidden:
            key_mask = mask.flatten() if indices is None else mask.flatten()[indices]
    else:
        indices, key_mask = None, mask.flatten()
        if not (compiling or unknown) and mask.device.type == "cpu" and bool(key_mask.all()):
            key_mask = None
        dense = layout_of_dense(batch, seqlen, mask.device)
        cu_seqlens, max_seqlen = dense.cu_seqlens, seqlen
    plan = ops.attention_plan(cu_seqlens, key_mask)
    return Layout(cu_seqlens, max_seqlen, (batch, seqlen), indices, key_mask, not exact, plan=plan)
