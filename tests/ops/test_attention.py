"""attention through PyTorch's ops, against the reference: grouped on CPU, padded for biases and while compiling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth

from bert_fast import backend, ops, reference
from bert_fast.ops.attention_torch import torch_attention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS, DIM = 3, 12
LENGTHS = {
    "mixed": [5, 33, 1, 17, 16, 15, 2, 40],
    "equal": [9, 9, 9],
    "one": [23],
    "one_token_each": [1, 1, 1, 1],
    "empty_among_them": [0, 7, 0, 0, 3, 0],
    "two_groups_out_of_order": [3, 30, 4, 29],
}


def inputs(lengths, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    qkv = torch.randn(3, int(bounds[-1]), HEADS, DIM, generator=generator).to(dtype)
    return *qkv.unbind(0), bounds


def compiled(q, k, v, cu_seqlens, longest, **options):
    """The padded path, which is what compiles."""
    bias, key_mask = options.get("bias"), options.get("key_mask")
    scale = options.get("scale") or 1 / math.sqrt(q.shape[-1])
    run = torch.compile(torch_attention, backend="eager", fullgraph=True)
    return run(q, k, v, cu_seqlens, longest, scale, bias, key_mask, options.get("window"), 0.0, None)


PATHS = {
    "groups": ops.attention,
    "groups_with_a_plan": lambda q, k, v, cu, longest, **o: ops.attention(
        q, k, v, cu, longest, plan=ops.attention_plan(cu, o.get("key_mask")), **o
    ),
    "padded": compiled,
}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [False, True], ids=["all_keys", "masked_keys"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_it_holds_the_contract_with_gradients(path, dtype, lengths, masked):
    dtype, lengths = DTYPES[dtype], LENGTHS[lengths]
    q, k, v, cu_seqlens = inputs(lengths, dtype)
    key_mask = torch.rand(q.shape[0]) < 0.7 if masked else None
    upstream = torch.randn(q.shape).to(dtype)
    results = []
    runs = ((PATHS[path], dtype), (reference.attention, dtype), (reference.attention, torch.float64))
    for run, kind in runs:
        leaves = [t.to(kind, copy=True).requires_grad_() for t in (q, k, v)]
        out = run(*leaves, cu_seqlens, max(lengths), key_mask=key_mask)
        grads = torch.autograd.grad(out, leaves, upstream.to(kind))
        if max(lengths) == 1:  # the gradients of q and k are 0, and rounding noise has no scale of its own
            grads = [torch.stack(grads)] * 3
        results.append([out.detach(), *grads])
    for name, got, eager, truth in zip(("out", "dq", "dk", "dv"), *results, strict=True):
        assert_close_to_truth(got, eager, truth, dtype, max(*lengths, DIM), name)


@pytest.mark.parametrize("shape", [(6, HEADS), (6, 1), (1, HEADS), (1, 1)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all_keys", "masked_keys"])
def test_an_additive_bias_and_its_gradient(shape, masked):
    lengths = [5, 9, 1, 0, 9, 3]
    q, k, v, cu_seqlens = (t.double() if t.is_floating_point() else t for t in inputs(lengths))
    bias = torch.randn(*shape, 10, 10, dtype=torch.float64)
    bias[..., 2] = -math.inf
    bias[..., 4, :] = -math.inf
    key_mask = torch.rand(q.shape[0]) < 0.7 if masked else None
    results = []
    for run in (ops.attention, reference.attention):
        leaves = [t.clone().requires_grad_() for t in (q, k, v, bias)]
        out = run(*leaves[:3], cu_seqlens, 9, bias=leaves[3], key_mask=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("masked", [False, True], ids=["all_keys", "masked_keys"])
@pytest.mark.parametrize("window", [0, 1, 4, 19, 50])
@pytest.mark.parametrize("path", PATHS)
def test_a_window_and_its_gradients(path, window, masked, biased):
    lengths = [5, 20, 1, 0, 19, 20]
    q, k, v, cu_seqlens = (t.double() if t.is_floating_point() else t for t in inputs(lengths))
    place = torch.arange(20)
    hidden = torch.zeros(1, 1, 20, 20).double().masked_fill((place[:, None] - place).abs() > window, -math.inf)
    bias = torch.randn(1, HEADS, 20, 20, dtype=torch.float64) if biased else None
    key_mask = torch.rand(q.shape[0]) < 0.7 if masked else None
    results = []
    for run, options in (
        (PATHS[path], {"bias": bias, "window": window}),
        (reference.attention, {"bias": bias, "window": window}),
        (reference.attention, {"bias": hidden if bias is None else bias + hidden}),
    ):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        out = run(*leaves, cu_seqlens, 20, key_mask=key_mask, **options)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for got, reference_result, want in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-8, atol=1e-10)
        assert torch.allclose(reference_result, want, rtol=1e-8, atol=1e-10)


def test_a_negative_window_is_an_error():
    q, k, v, cu_seqlens = inputs([5, 3])
    with pytest.raises(ValueError, match="window must be at least 0"):
        ops.attention(q, k, v, cu_seqlens, 5, window=-1)
    with pytest.raises(ValueError, match="window must be at least 0"), backend.use_backend("triton"):
        ops.attention_joined(torch.stack([q, k, v], 1), cu_seqlens, 5, window=-1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.booleans(), st.integers(0, 2**31))
def test_any_lengths_in_any_order(lengths, masked, seed):
    q, k, v, cu_seqlens = inputs(lengths, torch.float64, seed)
    key_mask = None
    if masked:
        key_mask = torch.rand(q.shape[0], generator=torch.Generator().manual_seed(seed)) < 0.6
    got = ops.attention(q, k, v, cu_seqlens, max(lengths), key_mask=key_mask)
    want = reference.attention(q, k, v, cu_seqlens, max(lengths), key_mask=key_mask)
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
def test_nan_or_inf_of_hidden_keys_never_leaks(poison, path):
    q, k, v, cu_seqlens = inputs([5, 20, 3, 19])
    key_mask = torch.ones(47, dtype=torch.bool)
    key_mask[[0, 7, 24, 25, 27, 46]] = False
    want = PATHS[path](q.clone().requires_grad_(), k, v, cu_seqlens, 20, key_mask=key_mask)
    k[~key_mask], v[~key_mask] = poison, poison
    leaves = [t.requires_grad_() for t in (q, k, v)]
    got = PATHS[path](*leaves, cu_seqlens, 20, key_mask=key_mask)
    assert torch.equal(got, want)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), leaves))


@pytest.mark.parametrize("path", PATHS)
def test_a_sequence_sees_nothing_of_the_others(path):
    """Poison in one sequence stays there, though sequences of similar length share a call and its padding."""
    lengths = [5, 9, 4, 20]
    q, k, v, cu_seqlens = inputs(lengths)
    want = PATHS[path](q, k, v, cu_seqlens, 20)
    for t in (q, k, v):
        t[5:14] = math.nan
    got = PATHS[path](q, k, v, cu_seqlens, 20)
    others = torch.cat([torch.arange(5), torch.arange(14, 38)])
    assert torch.equal(got[others], want[others])
    assert got[5:14].isnan().all()


@pytest.mark.parametrize("path", PATHS)
def test_fully_masked_rows_give_0(path):
    q, k, v, cu_seqlens = inputs([5, 20, 3])
    key_mask = torch.arange(28) >= 5
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = PATHS[path](*leaves, cu_seqlens, 20, key_mask=key_mask)
    assert (out[:5] == 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.square().sum(), leaves))


@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.parametrize("path", PATHS)
def test_another_scale(path, scale):
    q, k, v, cu_seqlens = inputs([5, 20, 3])
    got = PATHS[path](q, k, v, cu_seqlens, 20, scale=scale)
    assert torch.allclose(got, reference.attention(q, k, v, cu_seqlens, 20, scale=scale), atol=1e-6)


@pytest.mark.parametrize("sequences", [0, 1, 3])
def test_no_token(sequences):
    q, k, v = (torch.zeros(0, HEADS, DIM, requires_grad=True) for _ in range(3))
    out = ops.attention(q, k, v, torch.zeros(sequences + 1, dtype=torch.int32), 0)
    assert out.shape == (0, HEADS, DIM)
    assert all(g is not None for g in torch.autograd.grad(out.sum(), (q, k, v)))


def test_permuted_and_strided_inputs():
    q, k, v, cu_seqlens = inputs([5, 20, 3, 18])
    want = ops.attention(q, k, v, cu_seqlens, 20)
    joined = torch.stack([q, k, v], 1).flatten(1).split(HEADS * DIM, -1)
    assert torch.equal(ops.attention(*(t.unflatten(-1, (HEADS, DIM)) for t in joined), cu_seqlens, 20), want)
    permuted = [t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (q, k, v)]
    assert torch.allclose(ops.attention(*permuted, cu_seqlens, 20), want, atol=1e-6)


def test_dropout_drops_and_keeps_the_mean():
    q, k, v, cu_seqlens = inputs([4, 20, 18, 3])
    torch.manual_seed(0)
    runs = torch.stack([ops.attention(q, k, v, cu_seqlens, 20, p=0.3) for _ in range(400)])
    want = ops.attention(q, k, v, cu_seqlens, 20)
    assert not torch.equal(runs[0], runs[1])
    assert (runs.mean(0) - want).abs().mean() < 0.05
    torch.manual_seed(1)
    first = ops.attention(q, k, v, cu_seqlens, 20, p=0.3)
    torch.manual_seed(1)
    assert torch.equal(first, ops.attention(q, k, v, cu_seqlens, 20, p=0.3))


def test_dropout_with_a_seed_is_the_references():
    q, k, v, cu_seqlens = inputs([4, 20, 3])
    options = {"p": 0.3, "seed": torch.tensor([7]), "site": 4}
    got = ops.attention(q, k, v, cu_seqlens, 20, **options)
    assert torch.equal(got, reference.attention(q, k, v, cu_seqlens, 20, **options))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_on_a_gpu(dtype, backend):
    from bert_fast import use_backend

    dtype = DTYPES[dtype]
    q, k, v, cu_seqlens = inputs([5, 33, 1, 17], dtype)
    q, k, v = (torch.nn.functional.pad(t, (0, 4)) for t in (q, k, v))
    eager = reference.attention(q, k, v, cu_seqlens, 33)
    truth = reference.attention(q.double(), k.double(), v.double(), cu_seqlens, 33)
    with use_backend(backend):
        got = ops.attention(q.cuda(), k.cuda(), v.cuda(), cu_seqlens.cuda(), 33)
    assert_close_to_truth(got, eager, truth, dtype, 33)
