"""The oracle itself, against definitions written out in loops and float64, and against published vectors."""

import math

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EPS = 1e-12


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


# LayerNorm and what is fused with it


def layer_norm_by_hand(x, weight, bias, eps):
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def erf_gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


OPS = {
    "layer_norm": (
        lambda x, r, b, w, c: reference.layer_norm(x, w, c, EPS),
        lambda x, r, b, w, c: layer_norm_by_hand(x, w, c, EPS),
    ),
    "dropout_add_layer_norm": (
        lambda x, r, b, w, c: reference.dropout_add_layer_norm(x, r, w, c, EPS),
        lambda x, r, b, w, c: layer_norm_by_hand(x + r, w, c, EPS),
    ),
    "dropout_add_layer_norm_with_bias": (
        lambda x, r, b, w, c: reference.dropout_add_layer_norm(x, r, w, c, EPS, x_bias=b),
        lambda x, r, b, w, c: layer_norm_by_hand(x + b + r, w, c, EPS),
    ),
    "gelu_erf": (lambda x, r, b, w, c: reference.gelu(x), lambda x, r, b, w, c: erf_gelu(x)),
    "gelu_tanh": (lambda x, r, b, w, c: reference.gelu(x, "tanh"), lambda x, r, b, w, c: tanh_gelu(x)),
    "bias_gelu_erf": (lambda x, r, b, w, c: reference.bias_gelu(x, b), lambda x, r, b, w, c: erf_gelu(x + b)),
    "bias_gelu_tanh": (lambda x, r, b, w, c: reference.bias_gelu(x, b, "tanh"), lambda x, r, b, w, c: tanh_gelu(x + b)),
    "bias_gelu_without_bias": (lambda x, r, b, w, c: reference.bias_gelu(x, None), lambda x, r, b, w, c: erf_gelu(x)),
    "gelu_layer_norm_erf": (
        lambda x, r, b, w, c: reference.gelu_layer_norm(x, b, w, c, EPS),
        lambda x, r, b, w, c: layer_norm_by_hand(erf_gelu(x + b), w, c, EPS),
    ),
    "gelu_layer_norm_tanh_without_bias": (
        lambda x, r, b, w, c: reference.gelu_layer_norm(x, None, w, c, EPS, "tanh"),
        lambda x, r, b, w, c: layer_norm_by_hand(tanh_gelu(x), w, c, EPS),
    ),
}


def row_inputs(dtype, rows=13, hidden=48):
    """x, residual, x_bias, weight, bias."""
    shapes = ((rows, hidden), (rows, hidden), (hidden,), (hidden,), (hidden,))
    return [normal(*shape, dtype=dtype, seed=index) for index, shape in enumerate(shapes)]


@pytest.mark.parametrize("op", OPS)
def test_row_ops_are_their_definitions_in_float64_with_gradients(op):
    function, definition = OPS[op]
    inputs = [t.requires_grad_() for t in row_inputs(torch.float64)]
    got, want = function(*inputs), definition(*inputs)
    assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)
    upstream = normal(*got.shape, seed=9)
    grads = [torch.autograd.grad(y, inputs, upstream, allow_unused=True) for y in (got, want)]
    for left, right in zip(*grads, strict=True):
        assert (left is None) == (right is None)
        assert left is None or torch.allclose(left, right, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_row_ops_hold_the_contract(op, dtype):
    function, definition = OPS[op]
    inputs = row_inputs(DTYPES[dtype], rows=40)
    got = function(*inputs)
    assert got.dtype == DTYPES[dtype]
    eager, truth = definition(*inputs), definition(*(t.double() for t in inputs))
    assert_close_to_truth(got, eager, truth, DTYPES[dtype], 48)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_layer_norm_eps_1e_12_vanishes_in_16_bits_but_statistics_are_float32(dtype):
    """1e-12 is 0 in float16: a constant row would divide by zero, and 1 / deviation saved in 16 bits is inf."""
    dtype = DTYPES[dtype]
    for spread in (0.0, 1e-4):
        x = (1.5 + spread * torch.randn(5, 64)).to(dtype).requires_grad_()
        weight, bias = torch.ones(64, dtype=dtype, requires_grad=True), torch.zeros(64, dtype=dtype)
        y = reference.layer_norm(x, weight, bias, EPS)
        y.backward(torch.randn(5, 64).to(dtype))
        assert y.isfinite().all()
        assert weight.grad.isfinite().all()
        assert weight.grad.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_of_a_large_offset_does_not_cancel(dtype):
    """Two passes or Welford: E[x^2] - E[x]^2 would lose all digits here."""
    dtype = DTYPES[dtype]
    x = (1000 + torch.randn(8, 96)).to(dtype)
    one, zero = torch.ones(96, dtype=dtype), torch.zeros(96, dtype=dtype)
    truth = layer_norm_by_hand(x.double(), one.double(), zero.double(), EPS)
    error = (reference.layer_norm(x, one, zero, EPS).double() - truth).abs().max()
    assert error < {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 5e-3}[dtype]


def test_layer_norm_weights_of_another_dtype():
    x = normal(4, 32, dtype=torch.float32)
    weight, bias = normal(32, dtype=torch.bfloat16), normal(32, dtype=torch.bfloat16, seed=1)
    got = reference.layer_norm(x, weight, bias, EPS)
    assert got.dtype == torch.float32
    want = layer_norm_by_hand(x.double(), weight.double(), bias.double(), EPS)
    assert torch.allclose(got.double(), want, atol=1e-5)


def test_mixed_dtypes_of_the_residual_promote():
    x, residual = normal(4, 32, dtype=torch.bfloat16), normal(4, 32, dtype=torch.float32, seed=1)
    one, zero = torch.ones(32), torch.zeros(32)
    got = reference.dropout_add_layer_norm(x, residual, one, zero, EPS)
    assert got.dtype == torch.float32
    want = layer_norm_by_hand(x.double() + residual.double(), one.double(), zero.double(), EPS)
    assert torch.allclose(got.double(), want, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rows", [0, 1])
def test_row_ops_of_no_row_and_of_one(op, rows):
    function, definition = OPS[op]
    inputs = row_inputs(torch.float32, rows=rows)
    got = function(*inputs)
    assert got.shape == (rows, 48)
    assert torch.allclose(got, definition(*inputs), atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_row_ops_of_strided_inputs(op):
    function, _ = OPS[op]
    dense = row_inputs(torch.float32)
    strided = [torch.stack([t, -t], -1)[..., 0] for t in dense]
    assert not strided[0].is_contiguous()
    assert torch.allclose(function(*strided), function(*dense), rtol=0, atol=1e-6)


# Embeddings


def embedding_inputs(dtype=torch.float64, tokens=11, hidden=24):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, rows, (tokens,), generator=generator) for rows in (30, 2, 12)]
    tables = [normal(rows, hidden, dtype=dtype, seed=rows) for rows in (30, 12, 2)]
    return ids, tables, (normal(hidden, dtype=dtype, seed=1), normal(hidden, dtype=dtype, seed=2))


@pytest.mark.parametrize("types", [True, False], ids=["types", "no_types"])
@pytest.mark.parametrize("padding_idx", [None, 0, 5])
def test_embedding_is_a_sum_of_rows_and_its_padding_row_gets_no_gradient(padding_idx, types):
    (words, kinds, places), tables, norm = embedding_inputs()
    words[3] = words[4] = padding_idx or 0
    tables = [t.requires_grad_() for t in tables]
    got = reference.embedding_layer_norm(
        words, kinds if types else None, places, *tables, *norm, EPS, padding_idx=padding_idx
    )
    kinds = kinds if types else torch.zeros_like(kinds)
    word, position, token_type = tables
    want = layer_norm_by_hand(word[words] + position[places] + token_type[kinds], *norm, EPS)
    assert torch.allclose(got, want, rtol=1e-10)
    upstream = normal(*got.shape, seed=5)
    grads = [torch.autograd.grad(y, tables, upstream) for y in (got, want)]
    if padding_idx is not None:
        assert (grads[0][0][padding_idx] == 0).all()
        grads[1][0][padding_idx] = 0
    for left, right in zip(*grads, strict=True):
        assert torch.allclose(left, right, rtol=1e-8, atol=1e-10)


# Attention


def attention_by_hand(q, k, v, bounds, scale=None, bias=None, key_mask=None, keep=None, p=0.0):
    """Row by row, in the inputs' dtype; ``keep[row, head]`` gives the kept keys of its sequence."""
    out = 0 * (q + k + v)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    for b, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        for row in range(start, end):
            for head in range(q.shape[1]):
                scores = (k[start:end, head] @ q[row, head]) * scale
                if bias is not None:
                    plane = bias[b if bias.shape[0] > 1 else 0, head if bias.shape[1] > 1 else 0]
                    scores = scores + plane[row - start, : end - start]
                visible = torch.ones(end - start, dtype=torch.bool) if key_mask is None else key_mask[start:end]
                visible = visible & (scores != -math.inf)
                if not visible.any():
                    continue
                probs = torch.zeros_like(scores)
                probs[visible] = torch.softmax(scores[visible], 0)
                if keep is not None:
                    probs = probs * keep[row, head][: end - start] / (1 - p)
                out[row, head] = probs[visible] @ v[start:end, head][visible]
    return out


LENGTHS = {
    "several": [5, 1, 9, 3],
    "one_token": [1],
    "one_sequence": [7],
    "with_empty_sequences": [0, 4, 0, 2, 0],
    "all_of_one_length": [4, 4, 4],
}
HEADS, DIM = 3, 10


def attention_inputs(lengths, dtype=torch.float64, heads=HEADS, dim=DIM):
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    q, k, v = (normal(bounds[-1], heads, dim, dtype=dtype, seed=s) for s in range(3))
    return q, k, v, bounds, torch.tensor(bounds, dtype=torch.int32)


def bias_for(lengths, kind):
    if kind is None:
        return None
    batch, heads, longest = len(lengths), HEADS, max(lengths)
    shape = {"full": (batch, heads), "shared_heads": (batch, 1), "shared_batch": (1, heads), "shared": (1, 1)}[kind]
    bias = normal(*shape, longest, longest, seed=8)
    return bias.masked_fill(normal(*bias.shape, seed=7) > 1, -math.inf)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("bias", [None, "full", "shared_heads", "shared_batch", "shared"])
@pytest.mark.parametrize("masked", [False, True], ids=["all_keys", "masked_keys"])
def test_attention_is_its_definition_with_gradients(lengths, bias, masked):
    q, k, v, bounds, cu_seqlens = attention_inputs(LENGTHS[lengths])
    inputs = [t.requires_grad_() for t in (q, k, v)]
    bias = bias_for(LENGTHS[lengths], bias)
    key_mask = normal(bounds[-1], seed=6) > -0.5 if masked else None
    got = reference.attention(*inputs, cu_seqlens, max(LENGTHS[lengths]), bias=bias, key_mask=key_mask)
    want = attention_by_hand(*inputs, bounds, bias=bias, key_mask=key_mask)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-11)
    upstream = normal(*got.shape, seed=5)
    grads = [torch.autograd.grad(y, inputs, upstream) for y in (got, want)]
    for left, right in zip(*grads, strict=True):
        assert torch.allclose(left, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_attention_takes_any_scale_0_included(scale):
    q, k, v, bounds, cu_seqlens = attention_inputs([5, 3])
    got = reference.attention(q, k, v, cu_seqlens, 5, scale=scale)
    assert torch.allclose(got, attention_by_hand(q, k, v, bounds, scale=scale), rtol=1e-10)


@pytest.mark.parametrize("dim", [1, 7, 64])
@pytest.mark.parametrize("max_seqlen", [9, 30], ids=["exact_maximum", "larger_maximum"])
def test_attention_of_any_head_size_and_any_upper_bound_on_lengths(max_seqlen, dim):
    q, k, v, bounds, cu_seqlens = attention_inputs([5, 1, 9], dim=dim)
    got = reference.attention(q, k, v, cu_seqlens, max_seqlen)
    assert torch.allclose(got, attention_by_hand(q, k, v, bounds), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_holds_the_contract(dtype):
    q, k, v, bounds, cu_seqlens = attention_inputs([15, 4, 30], DTYPES[dtype], dim=16)
    got = reference.attention(q, k, v, cu_seqlens, 30)
    assert got.dtype == DTYPES[dtype]
    eager = attention_by_hand(q, k, v, bounds)
    truth = attention_by_hand(q.double(), k.double(), v.double(), bounds)
    assert_close_to_truth(got, eager, truth, DTYPES[dtype], 30)


def test_attention_of_permuted_and_strided_inputs():
    q, k, v, bounds, cu_seqlens = attention_inputs([5, 3])
    want = reference.attention(q, k, v, cu_seqlens, 5)
    joined = torch.stack([q, k, v], 1)
    assert torch.equal(reference.attention(*joined.unbind(1), cu_seqlens, 5), want)
    permuted = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k, v)]
    assert torch.equal(reference.attention(*permuted, cu_seqlens, 5), want)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
def test_attention_of_hidden_keys_never_leaks_their_nan_or_inf(poison):
    q, k, v, bounds, cu_seqlens = attention_inputs([5, 4])
    key_mask = torch.ones(9, dtype=torch.bool)
    key_mask[[1, 6]] = False
    want = reference.attention(q, k, v, cu_seqlens, 5, key_mask=key_mask)
    k[~key_mask], v[~key_mask] = poison, poison
    inputs = [t.requires_grad_() for t in (q, k, v)]
    got = reference.attention(*inputs, cu_seqlens, 5, key_mask=key_mask)
    assert torch.equal(got, want)
    for grad in torch.autograd.grad(got.sum(), inputs):
        assert grad.isfinite().all()


def test_attention_fully_masked_rows_give_0_and_finite_gradients():
    q, k, v, bounds, cu_seqlens = attention_inputs([3, 4])
    inputs = [t.requires_grad_() for t in (q, k, v)]
    key_mask = torch.tensor([True] * 3 + [False] * 4)
    for options in ({"key_mask": key_mask}, {"bias": torch.full((1, 1, 4, 4), -math.inf)}):
        got = reference.attention(*inputs, cu_seqlens, 4, **options)
        assert (got[3:] == 0).all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(got.square().sum(), inputs))


@pytest.mark.parametrize("sequences", [0, 1, 3])
def test_attention_of_no_token(sequences):
    q, k, v = (torch.zeros(0, 2, 8, requires_grad=True) for _ in range(3))
    got = reference.attention(q, k, v, torch.zeros(sequences + 1, dtype=torch.int32), 5)
    assert got.shape == (0, 2, 8)
    assert all(g.shape == (0, 2, 8) for g in torch.autograd.grad(got.sum(), (q, k, v)))


def test_rows_and_sequences_of_a_packed_batch():
    cu_seqlens = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    rows, present = reference.padded_rows(cu_seqlens, 3, 5)
    assert present.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert rows[present].tolist() == [0, 1, 2, 3, 4]
    assert rows.min() >= 0
    assert rows.max() < 5
    sequence, offset = reference.sequence_of_row(cu_seqlens, 5)
    assert sequence.tolist() == [0, 0, 2, 2, 2]
    assert offset.tolist() == [0, 1, 0, 1, 2]


# Softmax


@pytest.mark.parametrize("dtype", ["float64", *DTYPES])
@pytest.mark.parametrize("mask", [None, "inf", "min", "two_min_added"])
def test_softmax_is_its_definition(mask, dtype):
    dtype = getattr(torch, dtype)
    scores = normal(2, 3, 5, 7, dtype=dtype)
    lowest = torch.finfo(dtype).min
    values = {"inf": -math.inf, "min": lowest}
    hidden = normal(2, 1, 5, 7, seed=3) > 0.5
    hidden[1, 0, 2] = True
    additive = None
    if mask == "two_min_added":
        one = torch.zeros(2, 1, 5, 7, dtype=dtype).masked_fill(hidden, lowest)
        additive = one + one
        assert (additive[hidden] == -math.inf).all()
    elif mask is not None:
        additive = torch.zeros(2, 1, 5, 7, dtype=dtype).masked_fill(hidden, values[mask])
    got = reference.scaled_masked_softmax(scores, additive, 0.7)
    assert got.dtype == dtype
    exact = scores.double() * 0.7
    truth = exact.softmax(-1)
    if mask is not None:
        truth = exact.masked_fill(hidden, -math.inf).softmax(-1).nan_to_num(0)
        assert (got[1, :, 2] == 0).all()
        assert (got.masked_select(hidden) == 0).all()
    if dtype == torch.float64:
        assert torch.allclose(got, truth, rtol=1e-12)
    else:
        eager = (scores * 0.7).masked_fill(hidden if mask else torch.zeros_like(hidden), -math.inf).softmax(-1)
        assert_close_to_truth(got, eager.nan_to_num(0), truth, dtype, 7)


def test_softmax_adds_finite_masks():
    scores, mask = normal(1, 2, 3, 4), normal(1, 1, 3, 4, seed=1)
    assert torch.allclose(reference.scaled_masked_softmax(scores, mask, 0.5), (scores * 0.5 + mask).softmax(-1))


def test_softmax_of_a_fully_masked_row_has_a_finite_gradient():
    scores = normal(1, 1, 2, 3).requires_grad_()
    mask = torch.tensor([[[[0.0, 0, 0], [-math.inf] * 3]]])
    (grad,) = torch.autograd.grad(reference.scaled_masked_softmax(scores, mask).square().sum(), scores)
    assert grad.isfinite().all()
    assert (grad[..., 1, :] == 0).all()


# Philox and dropout


def philox_by_the_paper(counter, key):
    """Philox4x32-10 of Salmon et al. (2011), in Python integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        low0, high0, low1, high1 = p0 & 0xFFFFFFFF, p0 >> 32, p1 & 0xFFFFFFFF, p1 >> 32
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_the_python_philox_gives_random123s_known_answers(counter, key, expected):
    assert philox_by_the_paper(counter, key) == expected


@pytest.mark.parametrize("site", [0, 1, 35, 2**31])
@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -1, -(2**63), 0x243F6A8885A308D3])
def test_philox_is_the_papers(seed, site):
    """Element offsets are int64: also beyond 2^31 and 2^34, where the counter's second word begins."""
    index = torch.tensor([0, 1, 2, 3, 4, 1000, 2**31 - 1, 2**31, 2**34 - 1, 2**34, 2**34 + 5, 2**62 + 3])
    got = reference.philox(torch.tensor([seed]), site, index)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    for element, word in zip(index.tolist(), got.tolist(), strict=True):
        counter = (element >> 2 & 0xFFFFFFFF, element >> 34, site, 0)
        assert word == philox_by_the_paper(counter, key)[element & 3]


def test_philox_zero_vector():
    got = reference.philox(torch.tensor([0]), 0, torch.arange(4))
    assert got.tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(p):
    x = torch.ones(200, 100)
    y = reference.dropout(x, p, torch.tensor([42]), 3)
    assert ((y == 0).float().mean() - p).abs() < 0.01
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p)))


def test_dropout_same_seed_same_mask_other_seed_or_site_another():
    x = torch.ones(50, 40)
    masks = [reference.dropout(x, 0.5, torch.tensor([s]), site) for s, site in [(1, 0), (1, 0), (2, 0), (1, 1)]]
    assert torch.equal(masks[0], masks[1])
    for other in masks[2:]:
        assert 0.4 < (other == masks[0]).float().mean() < 0.6


@pytest.mark.parametrize("seed", [None, torch.tensor([5])], ids=["torch", "philox"])
def test_dropout_of_probability_0_and_1(seed):
    x = normal(4, 5)
    assert torch.equal(reference.dropout(x, 0.0, seed), x)
    assert (reference.dropout(x, 1.0, seed) == 0).all()


def test_dropout_threshold_is_exact():
    words = reference.philox(torch.tensor([9]), 0, torch.arange(1000))
    keep = reference.dropout_keep(torch.tensor([9]), 0, 0.25, torch.arange(1000))
    assert torch.equal(keep, words >= 2**30)
    assert not reference.dropout_keep(torch.tensor([9]), 0, 1.0, torch.arange(1000))[words < 2**32 - 1].any()


def test_dropout_in_layer_norm_indexes_rows_times_width():
    rows, width = 6, 20
    seed = torch.tensor([77])
    x, residual = torch.ones(rows, width), torch.zeros(rows, width)
    weight, bias = torch.ones(width), torch.zeros(width)
    keep = reference.dropout_keep(seed, 4, 0.3, torch.arange(rows * width).view(rows, width))
    want = layer_norm_by_hand(keep / 0.7, weight, bias, 1e-6)
    got = reference.dropout_add_layer_norm(x, residual, weight, bias, 1e-6, p=0.3, seed=seed, site=4)
    assert torch.allclose(got, want, atol=1e-5)


def test_dropout_in_attention_indexes_row_head_and_key():
    p, site, seed = 0.4, 5, torch.tensor([123])
    q, k, v, bounds, cu_seqlens = attention_inputs([4, 3])
    rows = torch.arange(7)[:, None, None] * HEADS + torch.arange(HEADS)[:, None]
    keep = reference.dropout_keep(seed, site, p, rows * 65536 + torch.arange(4))
    got = reference.attention(q, k, v, cu_seqlens, 4, p=p, seed=seed, site=site)
    want = attention_by_hand(q, k, v, bounds, keep=keep, p=p)
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert (reference.attention(q, k, v, cu_seqlens, 4, p=1.0, seed=seed) == 0).all()


def test_dropout_in_softmax_indexes_rows_times_65536():
    p, site, seed = 0.4, 5, torch.tensor([123])
    scores = normal(2, 3, 4, 7)
    keep = reference.dropout_keep(seed, site, p, torch.arange(24).view(2, 3, 4, 1) * 65536 + torch.arange(7))
    got = reference.scaled_masked_softmax(scores, None, 0.5, p=p, seed=seed, site=site)
    assert torch.allclose(got, (scores * 0.5).softmax(-1) * keep / (1 - p), rtol=1e-12)


@pytest.mark.parametrize("function", ["layer_norm", "attention", "softmax"])
def test_dropout_backward_regenerates_the_same_mask(function):
    seed = torch.tensor([11])
    if function == "layer_norm":
        inputs = [t.requires_grad_() for t in row_inputs(torch.float64, rows=4, hidden=6)]
        x, residual, x_bias, weight, bias = inputs

        def run(x, residual, x_bias, weight, bias):
            return reference.dropout_add_layer_norm(
                x, residual, weight, bias, 1e-5, x_bias=x_bias, p=0.3, seed=seed, site=2
            )
    elif function == "attention":
        *inputs, _, cu_seqlens = attention_inputs([3, 2], heads=2, dim=4)
        inputs = [t.requires_grad_() for t in inputs[:3]]

        def run(q, k, v):
            return reference.attention(q, k, v, cu_seqlens, 3, p=0.3, seed=seed, site=2)
    else:
        inputs = [normal(1, 2, 3, 4).requires_grad_()]

        def run(scores):
            return reference.scaled_masked_softmax(scores, None, 0.5, p=0.3, seed=seed, site=2)

    assert torch.autograd.gradcheck(run, inputs)
