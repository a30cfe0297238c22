"""Sizes that only a GPU bears: the design's 65,536 tokens, and tensors of more than 2**31 elements."""

import itertools

import pytest
import torch
from numerics import assert_close_to_truth
from on_gpu import DEVICE, HALVES, needs_memory

from bert_fast import ops, reference

pytestmark = pytest.mark.gpu

TOKENS, HIDDEN, HEADS, DIM = 65536, 768, 12, 64
EPS = 1e-12
SLICES = (slice(0, 512), slice(TOKENS // 2, TOKENS // 2 + 512), slice(TOKENS - 512, TOKENS))


def randn(*shape, dtype, seed=0):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=DEVICE, dtype=torch.float32).to(dtype)


def leaf(*shape, dtype, seed=0):
    return randn(*shape, dtype=dtype, seed=seed).requires_grad_()


def rounded_to(dtype, *tensors):
    return [x.detach().to(dtype).requires_grad_() for x in tensors]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_dropout_add_layer_norm_of_65536_tokens(dtype, p):
    needs_memory(16)
    rows = [leaf(TOKENS, HIDDEN, dtype=dtype, seed=i) for i in range(2)]
    vectors = [leaf(HIDDEN, dtype=dtype, seed=5 + i) for i in range(3)]
    upstream = randn(TOKENS, HIDDEN, dtype=dtype, seed=9)
    dropout = {"p": p, "seed": torch.tensor([41], device=DEVICE), "site": 2}

    def results(function, x, residual, weight, bias, x_bias):
        y = function(x, residual, weight, bias, EPS, x_bias=x_bias, **dropout)
        return [y, *torch.autograd.grad(y, (x, residual, weight, bias, x_bias), upstream.to(y.dtype))]

    found = results(ops.dropout_add_layer_norm, *rows, *vectors)
    eager = results(reference.dropout_add_layer_norm, *rows, *vectors)
    truth = results(reference.dropout_add_layer_norm, *rounded_to(torch.float64, *rows, *vectors))
    for name, ours, theirs, exact in zip(("y", "dx", "dresidual"), found, eager, truth, strict=False):
        for part in SLICES:
            assert_close_to_truth(ours[part], theirs[part], exact[part], dtype, name=f"{name} {part}")
    for name, ours, theirs, exact in zip(("dweight", "dbias", "dx_bias"), found[3:], eager[3:], truth[3:], strict=True):
        assert_close_to_truth(ours, theirs, exact, dtype, name=name)


def ragged_lengths():
    """1 to 384 tokens each, TOKENS in all."""
    generator = torch.Generator().manual_seed(0)
    lengths, left = [], TOKENS
    while left:
        lengths.append(min(left, int(torch.randint(1, 385, (), generator=generator))))
        left -= lengths[-1]
    return lengths


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("length", [32, 128, 512, "ragged"])
def test_attention_of_65536_tokens(dtype, length):
    needs_memory(8)
    lengths = ragged_lengths() if length == "ragged" else [length] * (TOKENS // length)
    bounds = [0, *itertools.accumulate(lengths)]
    longest = max(lengths)
    cu_seqlens = torch.tensor(bounds, dtype=torch.int32, device=DEVICE)
    q, k, v = (x.detach().requires_grad_() for x in randn(TOKENS, 3, HEADS, DIM, dtype=dtype).unbind(1))
    upstream = randn(TOKENS, HEADS, DIM, dtype=dtype, seed=3)
    out = ops.attention(q, k, v, cu_seqlens, longest)
    found = [out, *torch.autograd.grad(out, (q, k, v), upstream)]
    for x in found:
        assert torch.isfinite(x).all()
    for index in (0, len(lengths) // 2, len(lengths) - 1):
        part = slice(bounds[index], bounds[index + 1])
        alone = torch.tensor([0, lengths[index]], dtype=torch.int32, device=DEVICE)

        def results(dtype, part=part, alone=alone):
            inputs = rounded_to(dtype, q[part], k[part], v[part])
            y = reference.attention(*inputs, alone, int(alone[-1]))
            return [y, *torch.autograd.grad(y, inputs, upstream[part].to(dtype))]

        names = ("out", "dq", "dk", "dv")
        for name, ours, theirs, exact in zip(names, found, results(dtype), results(torch.float64), strict=True):
            assert_close_to_truth(ours[part], theirs, exact, dtype, name=f"{name} of sequence {index}")


@pytest.mark.parametrize("dtype", HALVES)
def test_bias_gelu_of_65536_tokens(dtype):
    needs_memory(16)
    x, bias = leaf(TOKENS, 4 * HIDDEN, dtype=dtype), leaf(4 * HIDDEN, dtype=dtype, seed=1)
    upstream = randn(TOKENS, 4 * HIDDEN, dtype=dtype, seed=2)

    def results(function, x, bias):
        y = function(x, bias)
        return [y, *torch.autograd.grad(y, (x, bias), upstream.to(y.dtype))]

    found, eager = results(ops.bias_gelu, x, bias), results(reference.bias_gelu, x, bias)
    truth = results(reference.bias_gelu, *rounded_to(torch.float64, x, bias))
    for name, ours, theirs, exact in zip(("y", "dx"), found, eager, truth, strict=False):
        for part in SLICES:
            assert_close_to_truth(ours[part], theirs[part], exact[part], dtype, name=f"{name} {part}")
    assert_close_to_truth(found[2], eager[2], truth[2], dtype, name="dbias")


ROWS = 2**31 // HIDDEN + 77  # of HIDDEN elements: more than 2**31 in all
LAST = 33


def huge(seed):
    """bfloat16 [ROWS, HIDDEN] of 4.3 GB; random where it is looked at, at both ends."""
    x = torch.full((ROWS, HIDDEN), 0.5, dtype=torch.bfloat16, device=DEVICE)
    x[:LAST] = randn(LAST, HIDDEN, dtype=torch.bfloat16, seed=seed)
    x[-LAST:] = randn(LAST, HIDDEN, dtype=torch.bfloat16, seed=seed + 50)
    return x


def test_bias_gelu_over_two_to_the_31_elements():
    needs_memory(30)
    x, bias, dy = huge(1).requires_grad_(), leaf(HIDDEN, dtype=torch.bfloat16), huge(2)
    y = ops.bias_gelu(x, bias)
    (dx,) = torch.autograd.grad(y, x, dy)
    part = x[-LAST:].detach().requires_grad_()
    expected = ops.bias_gelu(part, bias)
    assert torch.equal(y[-LAST:], expected)
    assert torch.equal(dx[-LAST:], torch.autograd.grad(expected, part, dy[-LAST:])[0])


def test_layer_norm_over_two_to_the_31_elements():
    needs_memory(30)
    x, dy = huge(3).requires_grad_(), huge(4)
    weight, bias = leaf(HIDDEN, dtype=torch.bfloat16), leaf(HIDDEN, dtype=torch.bfloat16, seed=1)
    y = ops.layer_norm(x, weight, bias, EPS)
    (dx,) = torch.autograd.grad(y, x, dy)
    part = x[-LAST:].detach().requires_grad_()
    expected = ops.layer_norm(part, weight, bias, EPS)
    assert torch.equal(y[-LAST:], expected)
    assert torch.equal(dx[-LAST:], torch.autograd.grad(expected, part, dy[-LAST:])[0])


def test_dropout_draws_by_the_row_over_two_to_the_31_elements():
    needs_memory(30)
    x, residual = huge(5), torch.zeros(ROWS, HIDDEN, dtype=torch.bfloat16, device=DEVICE)
    weight, bias = torch.ones(HIDDEN, device=DEVICE).bfloat16(), torch.zeros(HIDDEN, device=DEVICE).bfloat16()
    seed, p = torch.tensor([12345], device=DEVICE), 0.3
    with torch.no_grad():
        y = ops.dropout_add_layer_norm(x, residual, weight, bias, EPS, p=p, seed=seed, site=4)[-LAST:]
    index = torch.arange((ROWS - LAST) * HIDDEN, ROWS * HIDDEN, device=DEVICE).view(LAST, HIDDEN)
    kept = reference.dropout_keep(seed, 4, p, index)
    dropped = (x[-LAST:].float() * kept / (1 - p)).double()
    expected = torch.nn.functional.layer_norm(dropped, (HIDDEN,), eps=EPS)
    assert (y.double() - expected).abs().max() < 0.05


def test_attention_over_two_to_the_31_elements():
    needs_memory(40)
    length = 64
    batch = ROWS // length + 1
    rows = batch * length
    cu_seqlens = torch.arange(0, rows + 1, length, dtype=torch.int32, device=DEVICE)
    q, k, v, dout = (torch.full((rows, HEADS, DIM), 0.25, dtype=torch.bfloat16, device=DEVICE) for _ in range(4))
    last = slice(rows - length, rows)
    for index, x in enumerate((q, k, v, dout)):
        x[last] = randn(length, HEADS, DIM, dtype=torch.bfloat16, seed=index)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = ops.attention(*inputs, cu_seqlens, length)
    gradients = torch.autograd.grad(out, inputs, dout)
    alone = [x[last].detach().requires_grad_() for x in inputs]
    # The same plan, so that the sums are taken in the same order.
    expected = ops.attention(*alone, torch.tensor([0, length], dtype=torch.int32, device=DEVICE), length)
    assert torch.equal(out[last], expected)
    for found, want in zip(gradients, torch.autograd.grad(expected, alone, dout[last]), strict=True):
        assert torch.equal(found[last], want)


@pytest.mark.parametrize("deterministic", [True, False], ids=["sorted", "as_it_comes"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_embeddings_of_65536_tokens_of_which_most_share_an_id(dtype, deterministic, monkeypatch):
    needs_memory(16)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    generator = torch.Generator(DEVICE).manual_seed(1)
    ids = [torch.randint(n, (TOKENS,), generator=generator, device=DEVICE) for n in (30522, 2, 512)]
    ids[0][:60000] = 103
    tables = [leaf(n, HIDDEN, dtype=dtype, seed=n) for n in (30522, 512, 2)]
    norm = [leaf(HIDDEN, dtype=dtype, seed=5 + i) for i in range(2)]
    upstream = randn(TOKENS, HIDDEN, dtype=dtype, seed=9)
    dropout = {"p": 0.1, "seed": torch.tensor([41], device=DEVICE), "site": -1, "padding_idx": 0}

    def results(function, *tensors):
        y = function(*ids, *tensors, EPS, **dropout)
        return [y.detach(), *torch.autograd.grad(y, tensors, upstream.to(y.dtype))]

    found = results(ops.embedding_layer_norm, *tables, *norm)
    again = results(ops.embedding_layer_norm, *tables, *norm)
    eager = results(reference.embedding_layer_norm, *tables, *norm)
    truth = results(reference.embedding_layer_norm, *rounded_to(torch.float64, *tables, *norm))
    names = ("y", "word", "position", "type", "weight", "bias")
    for name, ours, second, theirs, exact in zip(names, found, again, eager, truth, strict=True):
        assert torch.equal(ours, second) or not deterministic, name
        assert_close_to_truth(ours, theirs, exact, dtype, name=name)


def test_rows_are_padded_to_more_than_2_to_the_31_elements():
    needs_memory(16)
    batch, seqlen = 8, 2**31 // (8 * HIDDEN) + 3
    mask = torch.zeros(batch, seqlen, dtype=torch.bool, device=DEVICE)
    mask[0, 5] = mask[3, :7] = mask[-1, -4:] = True
    indices = mask.flatten().nonzero().squeeze(1)
    x = leaf(len(indices), HIDDEN, dtype=torch.bfloat16)
    padded = ops.pad_rows(x, indices, batch, seqlen)
    assert torch.equal(padded[mask], x)
    assert int((padded != 0).any(-1).sum()) == len(indices)
    (dx,) = torch.autograd.grad(padded, x, padded.detach())
    assert torch.equal(dx, x)
