"""int8 on CPU: rows as bytes, products of them, and what is fused between, against float64."""

import pytest
import torch
import torch.nn.functional as F

from bert_fast import backend, extension
from bert_fast.ops import quantized

pytestmark = pytest.mark.skipif(
    bool(quantized.int8_reasons()), reason=f"int8 cannot run here: {'; '.join(quantized.int8_reasons())}"
)
WIDTHS = [1, 7, 16, 31, 312, 384, 1000]
U = 2.0**-24


def values_of(rows):
    """float64: what bytes stand for."""
    return rows.codes.double() * rows.scale.double()[:, None] + rows.least.double()[:, None]


def product(width=40, outputs=70, rows=9):
    """A product, and the float64 values that it is exact for: those of its bytes."""
    weight, bias = torch.randn(outputs, width), torch.randn(outputs)
    linear = quantized.byte_linear(weight, bias)
    rounded = (weight / linear.scales[:, None]).round().double() * linear.scales.double()[:, None]
    held = quantized.byte_rows(torch.randn(rows, width) * 3 + 1)
    return linear(held), values_of(held) @ rounded.t() + bias.double()


def assert_near(got, truth, ulps=16):
    assert (got.double() - truth).abs().max() <= ulps * U * truth.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_bytes_are_the_nearest(width, dtype):
    x = (torch.randn(21, width) * torch.logspace(-6, 6, 21)[:, None] + 0.5).to(dtype)
    rows = quantized.byte_rows(x)
    assert rows.codes.dtype == torch.uint8 and rows.codes.shape == x.shape
    half_a_step = rows.scale.double()[:, None] / 2
    assert ((values_of(rows) - x.double()).abs() <= half_a_step * (1 + 1e-3) + 4 * U * x.double().abs()).all()
    varied = x.amax(1) > x.amin(1)
    assert (rows.codes.amin(1) == 0).all() and (rows.codes.amax(1)[varied] == 255).all()


def test_a_row_of_one_value_is_exact():
    x = torch.tensor([0.0, 3.0, -1e-30, 2.5e30])[:, None].expand(4, 50)
    assert torch.equal(values_of(quantized.byte_rows(x)).float(), x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 15, 16, 39])
def test_what_is_not_finite_spoils_its_row_and_no_other(bad, place):
    x = torch.randn(3, 40)
    linear = quantized.byte_linear(torch.randn(8, 40), torch.randn(8))
    clean = quantized.from_bytes(linear(quantized.byte_rows(x)), torch.float32)
    x[1, place] = bad
    spoilt = quantized.from_bytes(linear(quantized.byte_rows(x)), torch.float32)
    assert spoilt[1].isnan().all()
    assert torch.equal(spoilt[::2], clean[::2])


@pytest.mark.parametrize("rows", [0, 1, 9, 65])
@pytest.mark.parametrize("outputs", WIDTHS)
def test_products_are_exact_for_their_bytes(outputs, rows):
    y, truth = product(outputs=outputs, rows=rows)
    got = quantized.from_bytes(y, torch.float32)
    assert got.shape == truth.shape
    if rows:
        assert_near(got, truth, 256)  # scale * (q @ w) and least * sum(w) are larger than their sum
        rounded = quantized.from_bytes(y, torch.bfloat16)
        assert torch.equal(rounded, got.bfloat16())


def test_the_largest_sums_do_not_overflow():
    width = 16384
    linear = quantized.byte_linear(torch.full((3, width), -2.0), None)
    x = torch.ones(2, width)
    x[:, 0] = 0
    got = quantized.from_bytes(linear(quantized.byte_rows(x)), torch.float32)
    assert_near(got, torch.full((2, 3), -2.0 * (width - 1)).double())


def test_what_is_too_wide_or_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="weight must have at most 66311 inputs for sums of 32 bits, not 66312"):
        quantized.byte_linear(torch.ones(1, quantized.MAX_WIDTH + 1), None)
    y, _ = product(outputs=16, rows=4)
    norm = (torch.ones(16), torch.zeros(16), 1e-12)
    for residual in (torch.ones(4, 16, dtype=torch.bfloat16), torch.ones(1, 16)):
        with pytest.raises(ValueError, match=r"residual must be float32 \[4, 16\]"):
            quantized.byte_add_layer_norm(y, residual, *norm, quantize=False)
    with pytest.raises(ValueError, match=r"weight must be float32 \[16\], not torch.float64"):
        quantized.byte_add_layer_norm(y, torch.ones(4, 16), norm[0].double(), *norm[1:], quantize=False)
    with pytest.raises(ValueError, match="approximate must be one of .*, not 'erf'"):
        quantized.byte_gelu(y, "erf")


def test_a_residual_of_any_stride():
    y, _ = product(outputs=16, rows=4)
    residual = torch.randn(16, 4)
    norm = (torch.randn(16), torch.randn(16), 1e-12)
    got, _ = quantized.byte_add_layer_norm(y, residual.t(), *norm, quantize=False)
    want, _ = quantized.byte_add_layer_norm(y, residual.t().contiguous(), *norm, quantize=False)
    assert torch.equal(got, want)


def test_the_smallest_numbers():
    x = torch.tensor([[0.0, 5e-37, 1e-38], [0.0, 1e-36, 1e-35]])
    assert ((values_of(quantized.byte_rows(x)) - x.double()).abs() <= 1e-36).all()
    tiny = quantized.byte_linear(torch.tensor([[1e-37, 0.0], [1.0, 0.5]]), None)
    got = quantized.from_bytes(tiny(quantized.byte_rows(torch.tensor([[1.0, 0.0]]))), torch.float32)
    torch.testing.assert_close(got, torch.tensor([[0.0, 1.0]]), atol=1e-6, rtol=0)


def test_weights():
    weight = torch.randn(5, 64)
    weight[2] = 0
    linear = quantized.byte_linear(weight, None)
    assert torch.equal(linear.scales, weight.abs().amax(1) / 127)
    x = torch.randn(4, 64)
    rows = quantized.byte_rows(x)
    got = quantized.from_bytes(linear(rows), torch.float32)
    assert torch.equal(got[:, 2], torch.zeros(4))
    of_rows = rows.scale[:, None] * weight.abs().sum(1)
    of_weight = values_of(rows).abs().sum(1)[:, None] * linear.scales
    assert ((got - x @ weight.t()).abs() <= (of_rows + of_weight) / 2 + 1e-5).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("outputs", WIDTHS)
def test_gelu(outputs, approximate):
    y, _ = product(outputs=outputs)
    held = quantized.byte_gelu(y, approximate)
    truth = F.gelu(quantized.from_bytes(y, torch.float32).double(), approximate=approximate)
    step = held.scale.double()[:, None]
    assert ((values_of(held) - truth).abs() <= step * 0.501 + 1e-6).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_over_its_whole_range(approximate):
    x = torch.cat([torch.linspace(-40, 40, 4001), torch.tensor([-1e30, 1e30, 0.0, -0.0, float("nan")])])[None]
    activation = {"none": "gelu", "tanh": "gelu_tanh"}[approximate]
    got, _ = quantized._pass(x, activation=activation, dtype=torch.float32)
    truth = F.gelu(x.double(), approximate=approximate)
    error = (got.double() - truth)[:, :-1].abs()
    assert (error <= 4e-7 * truth[:, :-1].abs().clamp_min(1)).all()
    assert got[0, -1].isnan()


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("outputs", WIDTHS[2:])
def test_add_layer_norm(outputs, quantize):
    y, _ = product(outputs=outputs)
    residual, weight, bias = torch.randn(9, outputs), torch.randn(outputs), torch.randn(outputs)
    out, held = quantized.byte_add_layer_norm(y, residual, weight, bias, 1e-12, quantize)
    summed = quantized.from_bytes(y, torch.float32).double() + residual.double()
    truth = F.layer_norm(summed, (outputs,), weight.double(), bias.double(), 1e-12)
    assert_near(out, truth, 32)
    if quantize:
        assert ((values_of(held) - out.double()).abs() <= held.scale.double()[:, None] * 0.501).all()
    else:
        assert held.codes.numel() == 0


def test_bits_do_not_depend_on_threads_or_other_rows():
    before = torch.get_num_threads()
    y, _ = product(outputs=96, rows=101)
    try:
        torch.set_num_threads(2)
        two = quantized.byte_gelu(y, "none")
    finally:
        torch.set_num_threads(before)
    one = quantized.byte_gelu(y, "none")
    assert all(map(torch.equal, one, two))
    some = quantized.ByteRows(y.rows.codes[40:43], y.rows.lines[:, 40:43])
    alone = quantized.byte_gelu(y.linear(some), "none")
    assert torch.equal(alone.codes, one.codes[40:43])
    assert torch.equal(alone.lines, one.lines[:, 40:43])


def test_bad_calls_are_refused():
    call = extension.required().quantized_rows
    rows = ("float32", 1, 4, (0, 0, 0, 0), 0, "none", (0, 0, 0.0), 0, "float32", (0, 0, 0), 1, 0)
    with pytest.raises(ValueError, match="x must not be null"):
        call(0, *rows)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        call(8, "float32", 1, 0, *rows[3:])
    with pytest.raises(ValueError, match="activation must be none, gelu or gelu_tanh, got relu"):
        call(8, *rows[:5], "relu", *rows[6:])


def test_reasons():
    with backend.use_backend("reference"):
        assert quantized.int8_reasons() == ["PyTorch's ops were asked for"]
    assert quantized.int8_reasons() == []
