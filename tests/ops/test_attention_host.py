"""attention on CPU by the extension: against float64 and PyTorch's ops, and only where it may run."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close_to_truth
from torch.fx.experimental.proxy_tensor import make_fx

from bert_fast import backend, extension, ops, reference
from bert_fast.ops import host_threads
from bert_fast.ops.attention_host import host_attention, host_attention_reason, host_attention_runs

pytestmark = pytest.mark.skipif(
    extension.module() is None or host_attention_reason() is not None,
    reason=f"the extension's attention cannot run here: {extension.module() and host_attention_reason()}",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = [1, 7, 0, 16, 33, 100, 3, 64, 130]
INSTRUCTIONS = ["avx2", "avx512", "avx512bf16"]  # a machine that has one has those before it


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request):
    best = extension.required().attention_instructions()
    if INSTRUCTIONS.index(request.param) > INSTRUCTIONS.index(best):
        pytest.skip(f"the processor, or the compiler of the extension, has {best} at best")
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def inputs(lengths, head_dim=32, dtype=torch.float32, heads=3, seed=0, scale=1.0):
    """q, k and v as views of one fused projection, as the model makes them."""
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    qkv = torch.randn(int(bounds[-1]), 3, heads, head_dim, generator=generator) * scale
    return *qkv.to(dtype).unbind(1), bounds


def results(q, k, v, cu_seqlens, instructions="", key_mask=None, scale=None, bias=None, window=None):
    """What the extension, PyTorch's ops and float64 give."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    longest = int(cu_seqlens.diff().max())
    options = {"scale": scale, "key_mask": key_mask, "bias": bias, "window": window}
    truth = reference.attention(*(x.double() for x in (q, k, v)), cu_seqlens, longest, **options)
    with backend.use_backend("reference"):
        eager = ops.attention(q, k, v, cu_seqlens, longest, **options)
    got = host_attention(q, k, v, cu_seqlens, scale, key_mask, instructions, bias=bias, window=window)
    return got, eager, truth


@pytest.mark.parametrize("masked", [False, True], ids=["all_keys", "masked_keys"])
@pytest.mark.parametrize("head_dim", [1, 5, 8, 12, 16, 24, 32, 40, 64, 80, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_holds_the_contract(dtype, head_dim, masked, instructions):
    *qkv, cu_seqlens = inputs(LENGTHS, head_dim, DTYPES[dtype])
    key_mask = None
    if masked:
        key_mask = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(1)) < 0.6
        key_mask[1:8] = False  # a sequence of which nothing is seen
    got, eager, truth = results(*qkv, cu_seqlens, instructions, key_mask)
    assert_close_to_truth(got, eager, truth, DTYPES[dtype], k=head_dim)
    if masked:
        assert not got[1:8].any()


@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=7),
    head_dim=st.integers(1, 70),
    seed=st.integers(0, 2**32),
    masked=st.booleans(),
    window=st.none() | st.integers(0, 100),
    shape=st.none() | st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=60, deadline=None)
def test_any_batch_holds_the_contract(lengths, head_dim, seed, masked, window, shape):
    *qkv, cu_seqlens = inputs(lengths, head_dim, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    key_mask = torch.rand(sum(lengths), generator=generator) < 0.5 if masked else None
    bias = None
    if shape is not None:
        bias = torch.randn(len(lengths) if shape[0] else 1, 3 if shape[1] else 1, 91, 93, generator=generator) * 3
    options = {"key_mask": key_mask, "window": window, "bias": bias}
    for instructions in ("avx2", ""):
        assert_close_to_truth(*results(*qkv, cu_seqlens, instructions, **options), torch.float32, k=head_dim)


@pytest.mark.parametrize("biased", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("dtype, window", [(d, w) for d in DTYPES for w in (0, 31, 64, 1000)])
def test_a_window_over_long_sequences(dtype, window, biased, instructions, threads):
    """Queries come in groups that hold only the keys they see: the same bits for any threads and company."""
    *qkv, cu_seqlens = inputs([517, 40, 128, 129, 0, 300], 24, DTYPES[dtype], heads=2)
    bias = torch.randn(1, 2, 520, 520, generator=torch.Generator().manual_seed(1)) if biased else None
    key_mask = torch.rand(len(qkv[0]), generator=torch.Generator().manual_seed(2)) < 0.7
    threads(1)
    got, eager, truth = results(*qkv, cu_seqlens, instructions, key_mask, bias=bias, window=window)
    assert_close_to_truth(got, eager, truth, DTYPES[dtype], k=24)
    threads(3)
    options = {"bias": bias, "window": window}
    assert torch.equal(host_attention(*qkv, cu_seqlens, 24**-0.5, key_mask, instructions, **options), got)
    alone = host_attention(*(x[:517] for x in qkv), cu_seqlens[:2], 24**-0.5, key_mask[:517], instructions, **options)
    assert torch.equal(alone, got[:517])


@pytest.mark.parametrize("kind", ["hides", "expanded", "strided", "bfloat16", "double"])
def test_a_bias_of_any_strides_and_dtype(kind, instructions):
    q, k, v, cu_seqlens = inputs([20, 33], 16)
    bias = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    if kind == "hides":
        bias[..., 5] = bias[:, :, 7] = -float("inf")
    elif kind == "expanded":
        bias = bias[:1, :, :, :].expand(2, -1, -1, -1)[:, :1].expand(-1, 3, -1, -1)
    elif kind == "strided":
        bias = bias.mT
    elif kind in ("bfloat16", "double"):
        bias = bias.to(getattr(torch, kind))
    plain = bias.float().clone()  # contiguous: what the eager path takes
    got = host_attention(q, k, v, cu_seqlens, 0.25, None, instructions, bias=bias)
    assert torch.equal(got, host_attention(q, k, v, cu_seqlens, 0.25, None, instructions, bias=plain))
    _, eager, truth = results(q, k, v, cu_seqlens, instructions, bias=plain)
    assert_close_to_truth(got, eager, truth, torch.float32, k=16)
    if kind == "hides":
        assert not got[[7, 27]].any()


def test_a_bias_smaller_than_a_sequence_is_an_error():
    q, k, v, cu_seqlens = inputs([20, 33], 16)
    for shape in ((1, 1, 33, 32), (1, 1, 32, 33)):
        with pytest.raises(ValueError, match="at least 33"):
            host_attention(q, k, v, cu_seqlens, 0.25, None, bias=torch.zeros(shape))


@pytest.mark.parametrize("scale", [30.0, 300.0], ids=["saturated", "one_hot"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_far_apart(dtype, scale, instructions):
    *qkv, cu_seqlens = inputs([50, 90], 64, DTYPES[dtype])
    assert_close_to_truth(*results(*qkv, cu_seqlens, instructions, scale=scale), DTYPES[dtype], k=64)


def test_equal_scores_average_the_values(instructions):
    q, k, v, cu_seqlens = inputs([37])
    got, *_ = results(torch.zeros_like(q), k, v, cu_seqlens, instructions)
    torch.testing.assert_close(got, v.mean(0).expand_as(got), rtol=1e-5, atol=1e-6)


def test_bfloat16_rounds_to_nearest_even(instructions):
    """One key: the output is the value itself, through float32 and back. Products of pairs take subnormals for 0."""
    q, k, _, cu_seqlens = inputs([1] * 512, 32, torch.bfloat16, heads=1)
    bits = torch.arange(2**14, dtype=torch.int32).reshape(512, 1, 32) * 4 + 3
    v = bits.to(torch.int16).view(torch.bfloat16)
    got, *_ = results(q, k, v, cu_seqlens, instructions)
    finite, normal = torch.isfinite(v), v.abs() >= torch.finfo(torch.bfloat16).tiny
    assert torch.equal(got[finite & normal], v[finite & normal])
    assert torch.equal(got[~normal & finite], v[~normal & finite] * (instructions != "avx512bf16"))
    assert torch.equal(torch.isnan(got), torch.isnan(v))


def test_nan_of_a_hidden_key_never_leaks_and_one_of_a_visible_key_shows(instructions):
    q, k, v, cu_seqlens = inputs([20, 30])
    key_mask = torch.ones(50, dtype=torch.bool)
    key_mask[[3, 25]] = False
    want, *_ = results(q, k, v, cu_seqlens, instructions, key_mask)
    k[[3, 25]], v[[3, 25]] = float("nan"), float("inf")
    got = host_attention(q, k, v, cu_seqlens, 32**-0.5, key_mask, instructions)
    assert torch.equal(got, want)
    key_mask[3] = True
    got = host_attention(q, k, v, cu_seqlens, 32**-0.5, key_mask, instructions)
    assert torch.isnan(got[:20]).all() and torch.equal(got[20:], want[20:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_company_change_no_bit(dtype, instructions, threads):
    """A long sequence alone is split between threads; among many it is not."""
    *qkv, cu_seqlens = inputs([300, *[9, 80, 17] * 5], 32, DTYPES[dtype], heads=2)
    threads(1)
    want = host_attention(*qkv, cu_seqlens, 0.2, None, instructions)
    for count in (2, 3, 8):
        threads(count)
        assert torch.equal(host_attention(*qkv, cu_seqlens, 0.2, None, instructions), want)
        alone = host_attention(*(x[:300] for x in qkv), cu_seqlens[:2], 0.2, None, instructions)
        assert torch.equal(alone, want[:300])


def test_rows_of_any_stride():
    q, k, v, cu_seqlens = inputs([11, 20], 16)
    want, *_ = results(q, k, v, cu_seqlens)
    spread = [torch.randn(16, 3, 62).permute(2, 1, 0)[::2] for _ in range(3)]
    for x, y in zip(spread, (q, k, v), strict=True):
        x.copy_(y)
    assert torch.equal(host_attention(*spread, cu_seqlens, 0.25, None), want)


def test_no_tokens_no_sequences_and_rows_beyond_the_last():
    q, k, v, cu_seqlens = inputs([0, 0])
    assert host_attention(q, k, v, cu_seqlens, 1.0, None).shape == (0, 3, 32)
    assert host_attention(q, k, v, cu_seqlens[:1], 1.0, None).shape == (0, 3, 32)
    q, k, v, cu_seqlens = inputs([5, 7])
    got = host_attention(q, k, v, cu_seqlens[:2], 0.2, None)
    assert got[:5].any() and not got[5:].any()


@pytest.mark.parametrize(
    ("bounds", "said"),
    [([0, 5, 13], "within the 12 rows"), ([0, 8, 5, 12], "must not fall"), ([1, 12], "must begin with 0")],
)
def test_bounds_that_cannot_be(bounds, said):
    q, k, v, _ = inputs([5, 7])
    with pytest.raises(ValueError, match=said):
        host_attention(q, k, v, torch.tensor(bounds, dtype=torch.int32), 0.2, None)


def test_instructions_that_are_not_there():
    with pytest.raises(ValueError, match="instructions must be among those of this machine, got sse9"):
        host_attention(*inputs([5]), 0.2, None, "sse9")


@torch.no_grad()
def test_it_runs_in_inference_alone():
    q, k, v, cu_seqlens = inputs([5])
    call = (cu_seqlens, None, None, 0.0)
    assert host_attention_runs(q, k, v, *call)
    assert host_attention_runs(q, k, v.clone().requires_grad_(), *call)
    with torch.enable_grad():
        assert not host_attention_runs(q, k, v, *call)
    assert not host_attention_runs(q, k, v, cu_seqlens, torch.zeros(1, 2, 5, 5), None, 0.0)
    assert not host_attention_runs(q, k, v, cu_seqlens, torch.zeros(1, 1, 5, 5, dtype=torch.bool), None, 0.0)
    assert not host_attention_runs(q, k, v, cu_seqlens, None, None, 0.1)
    assert not host_attention_runs(q.double(), k.double(), v.double(), *call)
    assert not host_attention_runs(q.half(), k.half(), v.half(), *call)
    with backend.use_backend("reference"):
        assert not host_attention_runs(q, k, v, *call)


@torch.no_grad()
def test_it_is_left_alone_by_tracers_and_transforms():
    q, k, v, cu_seqlens = inputs([5])
    seen = []

    def call(q):
        seen.append(host_attention_runs(q, k, v, cu_seqlens, None, None, 0.0))
        return q + 1

    make_fx(call)(q)
    torch.func.vmap(call)(q[None])
    torch.func.jvp(call, (q,), (q,))
    torch.compile(call, backend="eager")(q)
    call(torch.nn.Parameter(q, requires_grad=False))
    assert seen == [False, False, False, False, True]


def test_without_an_openmp_runtime_one_thread_still_runs_it(monkeypatch, threads):
    monkeypatch.setattr(host_threads, "_parallel", lambda: 0)
    threads(2)
    assert "GOMP_parallel" in host_attention_reason()
    threads(1)
    assert host_attention_reason() is None
    *qkv, cu_seqlens = inputs(LENGTHS)
    got, eager, truth = results(*qkv, cu_seqlens)
    assert_close_to_truth(got, eager, truth, torch.float32, k=32)


@torch.no_grad()
def test_what_does_not_fit_never_reaches_it():
    """Shapes, masks and layouts that its pointers would misread: PyTorch's ops take them, or say what is wrong."""
    q, k, v, cu_seqlens = inputs([5, 4])
    mask = torch.ones(9, dtype=torch.bool)
    assert host_attention_runs(q, k, v, cu_seqlens, None, mask, 0.0)
    for bad in (mask[:8], mask.long(), mask.float(), mask.to("meta")):
        assert not host_attention_runs(q, k, v, cu_seqlens, None, bad, 0.0)
    for bad in (k[:3], k[:, :2], k[..., :16], k[0]):
        assert not host_attention_runs(q, bad, v, cu_seqlens, None, None, 0.0)
        assert not host_attention_runs(q, k, bad, cu_seqlens, None, None, 0.0)
    assert not host_attention_runs(*(x[:, :0] for x in (q, k, v)), cu_seqlens, None, None, 0.0)
    assert not host_attention_runs(torch._neg_view(q), k, v, cu_seqlens, None, None, 0.0)
    assert not host_attention_runs(q, k, v, cu_seqlens.float(), None, None, 0.0)
    negated = ops.attention(torch._neg_view(q), k, v, cu_seqlens, 5)
    torch.testing.assert_close(negated, ops.attention(-q, k, v, cu_seqlens, 5), rtol=0, atol=1e-6)


@torch.no_grad()
def test_bounds_of_64_bits():
    q, k, v, cu_seqlens = inputs([5, 7, 3])
    want = host_attention(q, k, v, cu_seqlens, 0.2, None)
    assert torch.equal(host_attention(q, k, v, cu_seqlens.long(), 0.2, None), want)


@pytest.mark.parametrize("place", [0, 5, 20, 39])
def test_a_score_that_is_no_number_shows_among_hidden_ones(place, instructions):
    q, k = torch.ones(40, 1, 16), torch.randn(40, 1, 16)
    k[:, :, 0] = -torch.inf
    k[place] = torch.nan
    got = host_attention(q, k, torch.ones(40, 1, 16), torch.tensor([0, 40], dtype=torch.int32), 1.0, None, instructions)
    assert torch.isnan(got).all()
