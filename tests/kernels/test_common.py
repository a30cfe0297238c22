"""What kernels share: Philox against known answers and an independent implementation, dots, GELU, column sums."""

import math

import pytest
import torch
from kernel_oracle import DEVICE, DTYPES, randn, seed_tensor

triton = pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
import triton.language as tl  # noqa: E402

from bert_fast import reference  # noqa: E402
from bert_fast.kernels import common  # noqa: E402
from bert_fast.kernels.attention_tiles import head_base  # noqa: E402

M32 = 2**32 - 1

# Random123's known answers for philox4x32-10: counter, key, result (its file kat_vectors).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((M32, M32, M32, M32), (M32, M32), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox4x32_10(counter, key):
    """Philox in Python integers, written from the paper's definition (Salmon et al., 2011, section 4.3)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        product0, product2 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (product2 >> 32) ^ c1 ^ k0, product2 & M32, (product0 >> 32) ^ c3 ^ k1, product0 & M32
        k0, k1 = (k0 + 0x9E3779B9) & M32, (k1 + 0xBB67AE85) & M32
    return c0, c1, c2, c3


def word(seed, site, element):
    """Dropout's random word for one element, by the definition in Python integers."""
    group, seed = element >> 2, seed & (2**64 - 1)
    return philox4x32_10((group & M32, group >> 32, site, 0), (seed & M32, seed >> 32))[element & 3]


@triton.jit(do_not_specialize=["site", "threshold"])
def keep_kernel(
    out, seed, first, site, threshold, WIDTH: tl.constexpr, R: tl.constexpr, C: tl.constexpr, BY: tl.constexpr
):
    """Keep masks of R rows of C columns, BY elements a Philox call group, element = first + row * WIDTH + column."""
    rows = tl.load(first) + tl.arange(0, R).to(tl.int64)[:, None] * WIDTH
    if BY == 1:
        keep = common.philox_keep(tl.load(seed), site, rows + tl.arange(0, C)[None, :], threshold)
    elif BY == 4:
        keep = common.philox_keep4(tl.load(seed), site, rows // 4 + tl.arange(0, C // 4)[None, :], threshold)
    else:
        keep = common.philox_keep8(tl.load(seed), site, rows // 4 + 2 * tl.arange(0, C // 8)[None, :], threshold)
    tl.store(out + tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :], keep.to(tl.int8))


def keep_mask(seed, site, p, by, first=0, width=64, rows=4, columns=32):
    out = torch.full((rows, columns), 9, dtype=torch.int8, device=DEVICE)
    first = torch.tensor([first], dtype=torch.int64, device=DEVICE)
    threshold = common.dropout_threshold(p)
    keep_kernel[(1,)](out, seed_tensor(seed), first, site, threshold, WIDTH=width, R=rows, C=columns, BY=by)
    assert set(out.unique().tolist()) <= {0, 1}
    return out.bool().cpu()


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_python_philox_gives_random123s_known_answers(counter, key, answer):
    assert philox4x32_10(counter, key) == answer


@pytest.mark.parametrize("by", [1, 4, 8])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("seed", "site", "first"),
    [(0, 0, 0), (1, 1, 4), (-1, 2**31 - 1, 8), (0x299F31D0A4093822, 17, 2**34 - 64), (-(2**63), 3, 2**40 + 12)],
    ids=["zero", "one", "all-ones-seed", "across-2**34", "beyond-2**40"],
)
def test_keep_mask_is_philox_by_the_definition(by, p, seed, site, first):
    keep = keep_mask(seed, site, p, by, first)
    threshold = round(p * 2**32)
    expected = [[word(seed, site, first + row * 64 + c) >= threshold for c in range(32)] for row in range(4)]
    assert keep.tolist() == expected


@pytest.mark.parametrize("by", [1, 4, 8])
def test_keep_mask_is_the_references(by):
    index = torch.arange(4)[:, None] * 64 + torch.arange(32) + 1000
    expected = reference.dropout_keep(torch.tensor([77]), 5, 0.3, index)
    assert torch.equal(keep_mask(77, 5, 0.3, by, first=1000), expected)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_keeps_its_share_and_neighbours_are_independent(p):
    keep = keep_mask(2024, 1, p, by=8, width=1024, rows=32, columns=1024).double()
    n = keep.numel()
    assert abs(keep.mean().item() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / n)
    centred = (keep - (1 - p)) / math.sqrt(p * (1 - p))
    others = keep_mask(2024, 2, p, by=8, width=1024, rows=32, columns=1024).double()
    pairs = {
        "columns": (centred[:, 1:], centred[:, :-1]),
        "groups": (centred[:, 4:], centred[:, :-4]),
        "rows": (centred[1:], centred[:-1]),
        "sites": (centred, (others - (1 - p)) / math.sqrt(p * (1 - p))),
    }
    for name, (a, b) in pairs.items():
        assert abs((a * b).mean().item()) < 5 / math.sqrt(a.numel()), name


def test_keep_mask_at_p_0_and_1():
    assert keep_mask(3, 0, 0.0, by=4).all()
    # p = 1 is clamped to the largest word: what it keeps is scaled by 0
    assert not keep_mask(3, 0, 1.0, by=4).any()
    assert common.dropout_scale(1.0) == 0.0


@pytest.mark.parametrize(("p", "bits"), [(0.0, 0), (0.25, 2**30), (0.5, -(2**31)), (0.75, -(2**30)), (1.0, -1)])
def test_dropout_threshold_is_the_words_bits(p, bits):
    assert common.dropout_threshold(p) == bits


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_dropout_threshold_names_what_is_no_probability(p):
    with pytest.raises(ValueError, match="p must be a probability"):
        common.dropout_threshold(p)


def test_dropout_needs_a_seed_tensor_unless_p_is_0():
    assert common.Dropout.of(0.0, None, 4) == common.NO_DROPOUT
    for seed in (None, torch.zeros(1), torch.zeros(2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="seed must be an int64 tensor of one element"):
            common.Dropout.of(0.1, seed, 4)


@triton.jit
def dot_kernel(a, b, out, N: tl.constexpr, PRECISION: tl.constexpr):
    place = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    acc = tl.full([N, N], 1.0, tl.float32)
    tl.store(out + place, common.dot(tl.load(a + place), tl.load(b + place), acc, PRECISION))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot_adds_products_in_float32(dtype):
    a, b, out = randn(32, 32, dtype=dtype), randn(32, 32, dtype=dtype), torch.empty(32, 32, device=DEVICE)
    dot_kernel[(1,)](a, b, out, N=32, PRECISION="ieee")
    torch.testing.assert_close(out.double(), a.double() @ b.double() + 1, atol=1e-5, rtol=1e-5)


def test_dot_precision_follows_torchs_tf32_setting():
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert common.dot_precision(torch.float32) == "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert common.dot_precision(torch.float32) == "tf32"
        assert common.dot_precision(torch.bfloat16) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@triton.jit
def gelu_kernel(x, y, dy, N: tl.constexpr, APPROXIMATE: tl.constexpr, FAST: tl.constexpr):
    place = tl.arange(0, N)
    value, slope = common.gelu_and_grad(tl.load(x + place), APPROXIMATE, FAST)
    tl.store(y + place, common.gelu(tl.load(x + place), APPROXIMATE, FAST))
    tl.store(y + N + place, value)
    tl.store(dy + place, slope)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_and_its_slope_to_float32_rounding(approximate, fast):
    x = torch.linspace(-8, 8, 2048, device=DEVICE)
    y, slope = torch.empty(2, 2048, device=DEVICE), torch.empty_like(x)
    gelu_kernel[(1,)](x, y, slope, N=2048, APPROXIMATE=approximate, FAST=fast)
    truth = x.double().requires_grad_()
    torch.nn.functional.gelu(truth, approximate=approximate).sum().backward()
    expected = torch.nn.functional.gelu(truth.detach(), approximate=approximate)
    # relative to the result's size, absolute near 0: the fast erf is within 1.5e-7 of erf
    assert ((y.double() - expected).abs() <= 5e-7 * (1 + expected.abs())).all()
    assert ((slope.double() - truth.grad).abs() <= 1e-6).all()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_saturates(approximate, fast):
    x = torch.tensor([-3e4, -1e3, -50.0, -20.0, 0.0, 20.0, 50.0, 3e4], device=DEVICE)
    y, slope = torch.empty(2, 8, device=DEVICE), torch.empty_like(x)
    gelu_kernel[(1,)](x, y, slope, N=8, APPROXIMATE=approximate, FAST=fast)
    for found, expected in ((y, [0, 0, 0, 0, 0, 20, 50, 3e4]), (slope, [0, 0, 0, 0, 0.5, 1, 1, 1])):
        torch.testing.assert_close(found, torch.tensor(expected, device=DEVICE).expand_as(found), atol=1e-20, rtol=1e-6)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("values", [12, 32])
def test_row_plan_covers_every_width(itemsize, values):
    for hidden in (*range(1, 70), *range(70, 8193, 61), 768, 1024, 3072, 4096, 8192):
        plan = common.row_plan(hidden, itemsize, values)
        assert plan.cols * plan.chunks >= hidden > plan.cols * (plan.chunks - 1)
        for power in (plan.cols, plan.rows, plan.vector, plan.num_warps):
            assert power & (power - 1) == 0
        assert plan.vector * itemsize in (8, 16)
        assert plan.num_warps <= 16
        assert plan.rows * plan.cols == plan.num_warps * 32 * plan.vector, "the tile fills the threads exactly"
        assert plan.chunks * plan.vector <= max(values, 16)
        assert plan.cols * plan.chunks <= max(2 * hidden, 32)


def test_row_plan_wastes_no_lane_at_the_usual_widths():
    for hidden in (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096):
        for itemsize in (2, 4):
            plan = common.row_plan(hidden, itemsize, 32)
            assert plan.cols * plan.chunks == hidden


@pytest.mark.parametrize(("planes", "programs", "hidden"), [(1, 1, 1), (2, 7, 33), (3, 300, 40), (2, 128, 768)])
def test_column_sums(planes, programs, hidden):
    partials = randn(planes, programs, hidden)
    outs = [torch.full((hidden,), float("nan"), dtype=d, device=DEVICE) for d in DTYPES[:2] + [torch.float32]][:planes]
    common.column_sums(partials, outs)
    for out, expected in zip(outs, partials.double().sum(1), strict=True):
        tolerance = 1e-5 if out.dtype == torch.float32 else 2**-10
        torch.testing.assert_close(out.double(), expected, atol=tolerance * programs**0.5, rtol=tolerance)


def test_rows_are_copied_only_if_their_elements_are_apart():
    x = torch.zeros(6, 8)
    assert common.contiguous_rows(None) is None
    assert common.contiguous_rows(x[:, 2:5]).data_ptr() == x[:, 2:5].data_ptr()
    assert common.contiguous_rows(x.t()).is_contiguous()
    assert common.packed_rows(x, None)
    assert not common.packed_rows(x, x[:, :4])


def test_float64_is_refused_by_name():
    with pytest.raises(TypeError, match="weight must be float32, float16 or bfloat16 .* not torch.float64"):
        common.require_kernel_dtype("weight", torch.zeros(1, dtype=torch.float64))


@triton.jit(do_not_specialize=["start", "head", "stride"])
def _head_base_kernel(ptr, out, start, head, stride, TOKEN: tl.constexpr, VECTOR: tl.constexpr):
    tl.store(out, head_base(ptr, start, head, stride, TOKEN, VECTOR).to(tl.int64) - ptr.to(tl.int64))


def test_heads_far_apart_in_memory():
    """A head stride arrives divided by 8, in an int32 if it fits: the product must not be one."""
    data, out = torch.zeros(16, device=DEVICE).half(), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    _head_base_kernel[(1,)](data, out, 3, 5, 2**29 + 1, 64, 8)
    assert out.item() == 2 * (3 * 64 + 5 * 8 * (2**29 + 1))
