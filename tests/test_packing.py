"""Packed batches: properties of packing and unpacking, token budgets, layouts; the C++ and the PyTorch way agree."""

import copy
import pickle
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from bert_fast import PackedBatch, extension, ops, reference, use_backend
from bert_fast.packing import Layout, layout_of_dense, layout_of_mask, layout_of_packed, token_budget_batches

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def masks(draw):
    batch, seqlen = draw(st.integers(0, 6)), draw(st.integers(0, 9))
    bits = draw(st.lists(st.booleans(), min_size=batch * seqlen, max_size=batch * seqlen))
    return torch.tensor(bits, dtype=torch.bool).view(batch, seqlen)


@st.composite
def masks_and_keeps(draw):
    mask = draw(masks())
    bits = draw(st.lists(st.booleans(), min_size=mask.numel(), max_size=mask.numel()))
    return mask, torch.tensor(bits, dtype=torch.bool).view(mask.shape)


def without_extension():
    return mock.patch.object(extension, "module", lambda: None)


# unpad


def check_unpad(keep, visible):
    indices, cu_seqlens, longest, some_hidden = ops.unpad(keep, visible)
    assert indices.dtype == torch.int64
    assert cu_seqlens.dtype == torch.int32
    assert torch.equal(indices, keep.flatten().nonzero().squeeze(1))
    lengths = keep.sum(1)
    assert cu_seqlens.tolist() == [0, *lengths.cumsum(0).tolist()]
    assert longest == (int(lengths.max()) if lengths.numel() else 0)
    assert some_hidden == (visible is not None and bool((keep & ~visible).any()))


@QUICK
@given(masks_and_keeps(), st.booleans())
def test_unpad_finds_every_kept_token(pair, given_visible):
    mask, keep = pair
    check_unpad(mask | keep, mask if given_visible else None)
    with without_extension():
        check_unpad(mask | keep, mask if given_visible else None)


@QUICK
@given(masks())
def test_unpad_of_strided_masks(mask):
    for view in (mask.t().contiguous().t(), torch.stack([mask, ~mask], -1)[..., 0]):
        check_unpad(view, None)


@QUICK
@given(masks_and_keeps())
def test_padding_rows_back_undoes_unpadding(pair):
    mask, keep = pair
    kept = mask | keep
    indices, *_ = ops.unpad(kept)
    x = torch.randn(*mask.shape, 3)
    rows = ops.unpad_rows(x, indices)
    assert torch.equal(rows, x[kept])
    padded = ops.pad_rows(rows, indices, *mask.shape)
    assert torch.equal(padded, x * kept[..., None])


def test_padding_rows_back_has_gradients():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    indices, *_ = ops.unpad(mask)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ops.pad_rows(ops.unpad_rows(x, indices) ** 2, indices, 2, 3), (x,))


# Layouts


@QUICK
@given(masks_and_keeps(), st.booleans(), st.booleans())
def test_layout_of_a_mask_returns_what_was_packed(pair, exact, given_keep):
    mask, keep = pair
    layout = layout_of_mask(mask, keep=keep if given_keep else None, exact=exact)
    x = torch.randn(*mask.shape, 2) + 10
    rows = layout.pack(x)
    kept = torch.ones_like(mask) if exact else mask | keep if given_keep else mask
    assert torch.equal(rows, x[kept])
    assert rows.shape[0] == int(layout.cu_seqlens[-1])
    assert layout.max_seqlen >= int(kept.sum(1).max()) if mask.shape[0] else True
    visible = torch.ones_like(mask) if exact else mask
    assert torch.equal(layout.unpack(rows), x * visible[..., None])
    shown = mask[kept] if layout.key_mask is None else layout.key_mask
    assert torch.equal(shown, mask[kept])
    if layout.key_mask is None:
        assert mask[kept].all()


@QUICK
@given(st.integers(0, 5), st.integers(0, 7))
def test_layout_without_a_mask_keeps_every_place(batch, seqlen):
    layout = layout_of_dense(batch, seqlen, torch.device("cpu"))
    assert layout.cu_seqlens.tolist() == [seqlen * b for b in range(batch + 1)]
    x = torch.randn(batch, seqlen, 2)
    assert torch.equal(layout.unpack(layout.pack(x)), x)
    assert layout.key_mask is None
    assert layout.indices is None


def test_a_batch_without_padding_skips_the_gather():
    mask = torch.ones(3, 5, dtype=torch.bool)
    for options in ({}, {"keep": mask}, {"exact": True}):
        layout = layout_of_mask(mask, **options)
        assert layout.indices is None
        assert layout.key_mask is None
        x = torch.randn(3, 5, 2)
        assert layout.pack(x).data_ptr() == x.data_ptr(), "a copy was made"


@QUICK
@given(st.lists(st.integers(0, 6), max_size=6))
def test_first_rows_are_each_sequences_first_or_zeros(lengths):
    batch = PackedBatch.from_sequences([list(range(n)) for n in lengths])
    x = torch.randn(sum(lengths), 3) + 10
    first = layout_of_packed(batch).first_rows(x)
    assert first.shape == (len(lengths), 3)
    for row, start, length in zip(first, batch.cu_seqlens.tolist(), lengths, strict=False):
        assert torch.equal(row, x[start] if length else torch.zeros(3))


# PackedBatch


@st.composite
def sequences(draw):
    rows = draw(st.lists(st.lists(st.integers(0, 99), max_size=7), max_size=6))
    types = draw(st.one_of(st.none(), st.just([[token % 2 for token in row] for row in rows])))
    return rows, types


@QUICK
@given(sequences(), st.sampled_from(["lists", "arrays", "tensors", "tuples"]))
def test_from_sequences_holds_every_token_in_order(rows_and_types, kind):
    rows, types = rows_and_types
    make = {"lists": list, "tuples": tuple, "tensors": torch.tensor, "arrays": np.array}[kind]
    kinds = None if types is None else [make(row) for row in types]
    batch = PackedBatch.from_sequences([make(row) for row in rows], kinds)
    assert batch.input_ids.tolist() == [token for row in rows for token in row]
    assert batch.position_ids.tolist() == [place for row in rows for place in range(len(row))]
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum([len(row) for row in rows], dtype=int).tolist()]
    assert batch.max_seqlen == max(map(len, rows), default=0)
    assert batch.batch_size == len(rows)
    assert (batch.token_type_ids is None) == (types is None)
    if types is not None:
        assert batch.token_type_ids.tolist() == [kind for row in types for kind in row]
    assert batch.input_ids.dtype == batch.position_ids.dtype == torch.int64
    assert batch.cu_seqlens.dtype == torch.int32


def test_from_sequences_refuses_types_of_other_lengths():
    for types in ([[0, 0]], [[0], [0, 0]], [[0, 0], [0], [0]]):
        with pytest.raises(ValueError, match="token_type_ids must have the lengths of input_ids"):
            PackedBatch.from_sequences([[1, 2], [3]], types)


def example(embeds=False):
    batch = PackedBatch.from_sequences([[1, 2, 3], [4]], [[0, 1, 1], [0]])
    if not embeds:
        return batch
    values = {name: getattr(batch, name) for name in ("cu_seqlens", "max_seqlen", "position_ids", "token_type_ids")}
    return PackedBatch(input_ids=None, inputs_embeds=torch.randn(4, 5), **values)


def check_same(got, want):
    assert isinstance(got, PackedBatch)
    assert got.max_seqlen == want.max_seqlen
    for name in ("input_ids", "cu_seqlens", "position_ids", "token_type_ids", "inputs_embeds"):
        left, right = getattr(got, name), getattr(want, name)
        assert (left is None) == (right is None)
        assert left is None or (torch.equal(left, right) and left.dtype == right.dtype)


COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pytree": lambda x: pytree.tree_unflatten(*pytree.tree_flatten(x)),
    "pytree_map": lambda x: pytree.tree_map(lambda t: t, x),
    "to": lambda x: x.to("cpu"),
    "to_device_and_copy": lambda x: x.to(torch.device("cpu"), non_blocking=True),
    "treespec_json": lambda x: pytree.tree_unflatten(
        pytree.tree_flatten(x)[0], pytree.treespec_loads(pytree.treespec_dumps(pytree.tree_flatten(x)[1]))
    ),
}


@pytest.mark.parametrize("embeds", [False, True], ids=["ids", "embeds"])
@pytest.mark.parametrize("how", COPIES)
def test_copies_are_equal(how, embeds):
    batch = example(embeds)
    check_same(COPIES[how](batch), batch)


def test_to_a_dtype_casts_embeddings_and_leaves_integers():
    for arguments in ((torch.bfloat16,), ("cpu", torch.bfloat16), (torch.empty(1, dtype=torch.bfloat16),)):
        moved = example(embeds=True).to(*arguments)
        assert moved.inputs_embeds.dtype == torch.bfloat16
        assert moved.position_ids.dtype == torch.int64
        assert moved.cu_seqlens.dtype == torch.int32
    assert example().to(dtype=torch.float16).input_ids.dtype == torch.int64


def test_to_a_device_moves_everything():
    moved = example(embeds=True).to("meta")
    assert {t.device.type for t in pytree.tree_leaves(moved) if isinstance(t, torch.Tensor)} == {"meta"}


def test_a_map_over_the_pytree_reaches_every_tensor_and_keeps_the_length():
    moved = pytree.tree_map_only(torch.Tensor, lambda t: t + 1, example())
    assert moved.input_ids.tolist() == [2, 3, 4, 5]
    assert moved.max_seqlen == 3
    assert moved.inputs_embeds is None


@pytest.mark.gpu
def test_pin_memory_pins_everything():
    pinned = example(embeds=True).pin_memory()
    tensors = [t for t in pytree.tree_leaves(pinned) if isinstance(t, torch.Tensor)]
    assert all(t.is_pinned() for t in tensors)
    moved = pinned.to("cuda", non_blocking=True)
    assert moved.input_ids is None
    assert moved.inputs_embeds.is_cuda


def test_pin_memory_asks_every_tensor():
    with mock.patch.object(torch.Tensor, "pin_memory", lambda self: self + 1):
        pinned = example().pin_memory()
    assert pinned.input_ids.tolist() == [2, 3, 4, 5]
    assert pinned.cu_seqlens.tolist() == [1, 4, 5]


# Token budgets


@st.composite
def budgets(draw):
    lengths = draw(st.lists(st.integers(0, 40), max_size=40))
    return lengths, draw(st.integers(1, 100)), draw(st.integers(0, 6))


@QUICK
@given(budgets())
def test_token_budget_batches_are_full_sorted_and_complete(arguments):
    lengths, budget, most = arguments
    batches = [batch.tolist() for batch in token_budget_batches(lengths, budget, most)]
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: -lengths[i]), "longest first, equal lengths in order"
    totals = [sum(lengths[i] for i in batch) for batch in batches]
    for batch, total, after in zip(batches, totals, [*batches[1:], None], strict=False):
        assert batch
        assert len(batch) == 1 or total <= budget
        assert not most or len(batch) <= most
        if after:
            assert total + lengths[after[0]] > budget or (most and len(batch) == most), "there was room for one more"


@QUICK
@given(budgets())
def test_token_budget_batches_of_cpp_and_python_agree(arguments):
    compiled = token_budget_batches(*arguments)
    with without_extension():
        plain = token_budget_batches(*arguments)
    assert [b.tolist() for b in compiled] == [b.tolist() for b in plain]
    assert all(b.dtype == np.int64 for b in [*compiled, *plain])


@pytest.mark.parametrize("lengths", [np.array([3, 1, 2], dtype=np.int32), torch.tensor([3, 1, 2]), (3, 1, 2)], ids=type)
def test_token_budget_batches_of_any_sequence_of_integers(lengths):
    assert [b.tolist() for b in token_budget_batches(lengths, 4)] == [[0], [2, 1]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1], 0), "max_tokens must be at least 1, not 0"),
        (([1], 5, -1), r"max_sequences must be at least 0 \(no limit\), not -1"),
        (([3, -2], 5), "lengths must be at least 0, not -2"),
    ],
    ids=["max_tokens", "max_sequences", "lengths"],
)
def test_bad_token_budgets_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        token_budget_batches(*arguments)


# Parts of a batch for CPU inference


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 60))
def test_parts_cover_every_row_once_and_keep_to_the_limit(lengths, rows):
    layout = Layout(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths, default=0))
    parts = list(layout.parts(rows, lambda n: n + n % 2))
    assert [row for here, _, _ in parts for row in range(here.start, here.stop)] == list(range(sum(lengths)))
    for here, surplus, part in parts:
        count = here.stop - here.start
        inside = [n for n in part.cu_seqlens.diff().tolist() if n]
        assert sum(inside) == count > 0
        assert count <= rows or len(inside) == 1
        assert surplus == count % 2


def test_the_last_two_parts_share_what_is_left():
    layout = Layout(torch.arange(0, 2201, 10, dtype=torch.int32), 10)
    assert [here.stop - here.start for here, _, _ in layout.parts(1000, lambda n: n)] == [1000, 600, 600]


def test_arrays_must_fit_their_lengths():
    same = PackedBatch.from_sequences([[5, 6], [], [7]], [[0, 1], [], [1]])
    packed = PackedBatch.from_arrays(np.array([5, 6, 7], dtype=np.int32), [2, 0, 1], np.array([0, 1, 1]))
    for name, value in vars(same).items():
        other = getattr(packed, name)
        assert other.dtype == value.dtype and torch.equal(other, value) if torch.is_tensor(value) else other == value
    assert packed.numel() == 3
    with pytest.raises(ValueError, match="lengths must add up to the 3 tokens of input_ids, not to 2"):
        PackedBatch.from_arrays(np.array([5, 6, 7]), [2])
    with pytest.raises(ValueError, match=r"token_type_ids must be \[3\], not \[1\]"):
        PackedBatch.from_arrays(np.array([5, 6, 7]), [3], np.array([0]))


# What goes by distances


def distances(layout):
    """``layout.by_distance`` of the distance itself, head 0, and of its square, head 1."""
    return layout.by_distance(lambda d: torch.stack([d, d * d], -1).float())


@given(masks_and_keeps(), st.integers(0, 9))
@QUICK
def test_scores_by_distance_go_by_places_in_the_padded_sequence(pair, window):
    mask, keep = pair
    layout = layout_of_mask(mask, keep=keep)
    scores, local = distances(layout), layout.with_window(window)
    shared = layout.places() is None
    whole = shared and window >= layout.max_seqlen - 1
    assert (local.window, local.bias is None) == ((None if whole else window, True) if shared else (None, False))
    for row, kept in enumerate(mask | keep):
        place = kept.nonzero().flatten()
        away = place[None, :] - place[:, None]
        inside = (0 if shared else row, slice(None), slice(len(place)), slice(len(place)))
        assert torch.equal(scores[inside], torch.stack([away, away * away]).float())
        near = reference.within_window(len(place), window, away.device) if shared else local.bias[inside][0] == 0
        assert torch.equal(near, away.abs() <= window)


def test_the_kernels_are_given_a_window_as_scores():
    pytest.importorskip("triton")
    cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
    with use_backend("triton"):
        local = Layout(cu_seqlens, 4).with_window(1)
    assert local.window is None and torch.equal(local.bias[0, 0] == 0, reference.within_window(4, 1, cu_seqlens.device))


def test_a_window_is_added_to_the_scores_there_are():
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    layout = layout_of_mask(mask)
    local = replace(layout, bias=torch.ones(1, 1, 4, 4)).with_window(1)
    assert local.bias[0, 0, :3, :3].tolist() == [[1, -torch.inf, -torch.inf], [-torch.inf, 1, 1], [-torch.inf, 1, 1]]


def test_parts_keep_what_a_layout_has_of_its_own():
    cu_seqlens = torch.tensor([0, 3, 7, 7, 12], dtype=torch.int32)
    turned = (torch.arange(24.0).view(12, 2), -torch.arange(24.0).view(12, 2))
    own, shared = torch.randn(4, 1, 5, 5), torch.randn(1, 2, 5, 5)
    layout = Layout(cu_seqlens, 5, bias=own, rotary=turned)
    layout = replace(layout, local=Layout(cu_seqlens, 5, bias=shared, window=2))
    seen = list(layout.parts(4, lambda n: n + 1))
    assert [(rows.start, rows.stop) for rows, _, _ in seen] == [(0, 3), (3, 7), (7, 12)]
    for (rows, surplus, part), sequences in zip(seen, (slice(0, 1), slice(1, 3), slice(3, 4)), strict=True):
        assert surplus == 1 and torch.equal(part.bias, own[sequences]) or rows.start == 3
        assert part.window is None and part.local.window == 2 and part.local.bias is shared
        assert part.local.rotary is None and part.local.local is None
        for got, whole in zip(part.rotary, turned, strict=True):
            assert torch.equal(got[:-1], whole[rows]) and not got[-1].any()
