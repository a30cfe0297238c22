"""Linear layers on CPU: packed products against float64, and the choice between them and F.linear."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close_to_truth

import bert_fast

linear = importlib.import_module("bert_fast.ops.linear")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def supported(dtype):
    return dtype == torch.float32 or linear.onednn_runs(dtype)


def operands(rows, dtype, inner=48, outer=90):
    x, weight, bias = torch.randn(rows, inner), torch.randn(outer, inner) * 0.2, torch.randn(outer)
    return x.to(dtype), weight.to(dtype), bias.to(dtype)


ACTIVATIONS = {
    "none": (("none", "none"), lambda y: y),
    "gelu_erf": (("gelu", "none"), F.gelu),
    "gelu_tanh": (("gelu", "tanh"), lambda y: F.gelu(y, approximate="tanh")),
}


@pytest.mark.parametrize("rows", [1, 7, 64, 300])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_product_holds_the_contract(dtype, activation, biased, rows):
    dtype = DTYPES[dtype]
    if not supported(dtype):
        pytest.skip(f"oneDNN has no {dtype} products on this CPU")
    arguments, function = ACTIVATIONS[activation]
    x, weight, bias = operands(rows, dtype)
    bias = bias if biased else None
    with torch.no_grad():
        got = linear.pack_linear(weight, bias, dtype)(x, *arguments)
    eager = function(F.linear(x, weight, bias))
    truth = function(F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    assert got.dtype == dtype
    assert_close_to_truth(got, eager, truth, dtype, 48)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_product_that_adds_holds_the_contract(dtype):
    dtype = DTYPES[dtype]
    if not supported(dtype):
        pytest.skip(f"oneDNN has no {dtype} products on this CPU")
    x, weight, bias = operands(64, dtype)
    other = torch.randn(64, 90).to(dtype)
    before = other.clone()
    with torch.no_grad():
        got = linear.pack_linear(weight, bias, dtype).add(x, other)
    truth = other.double() + F.linear(x.double(), weight.double(), bias.double())
    assert_close_to_truth(got, other + F.linear(x, weight, bias), truth, dtype, 48)
    assert torch.equal(other, before), "the residual was written to"


def test_16_bit_weights_packed_in_float32_lose_nothing():
    x, weight, bias = operands(40, torch.bfloat16)
    packed = linear.pack_linear(weight, bias, torch.float32)
    got = packed(x.float())
    assert got.dtype == torch.float32
    assert torch.allclose(got, F.linear(x.float(), weight.float(), bias.float()), rtol=0, atol=1e-5)


def test_packing_is_a_copy():
    x, weight, bias = operands(40, torch.float32)
    packed = linear.pack_linear(weight, bias, torch.float32)
    before = packed(x)
    weight.mul_(2)
    bias_alone = packed(x)
    assert torch.equal(before, bias_alone)


def test_packing_strided_weights():
    x, weight, bias = operands(40, torch.float32)
    strided = weight.t().contiguous().t()
    got = linear.pack_linear(strided, bias, torch.float32)(x)
    assert torch.allclose(got, F.linear(x, weight, bias), rtol=0, atol=1e-5)


# The plan


@pytest.mark.parametrize("dtype", ["float64", *DTYPES])
@pytest.mark.parametrize("cpu_linear", ["onednn", "torch", "auto"], indirect=True)
def test_the_plan_follows_the_setting(cpu_linear, dtype):
    dtype = getattr(torch, dtype)
    packs, compute = linear.cpu_linear_plan(dtype)
    if cpu_linear == "torch" or dtype == torch.float64:
        assert (packs, compute) == (False, dtype)
    elif cpu_linear == "onednn":
        assert packs
        assert compute in (dtype, torch.float32)
    else:
        assert compute in (dtype, torch.float32)
    assert linear.cpu_linear_plan(dtype) == (packs, compute), "measured once"


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match=r"name must be one of \('auto', 'onednn', 'torch'\), not 'mkl'"):
        bert_fast.set_cpu_linear("mkl")


def test_an_unknown_setting_of_the_environment_is_named(monkeypatch):
    monkeypatch.setattr(linear, "_setting", "fast")
    linear._measured_plan.cache_clear()
    with pytest.raises(ValueError, match="BERT_FAST_CPU_LINEAR must be one of .* not 'fast'"):
        linear.cpu_linear_plan(torch.float32)


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    linear._measured_plan.cache_clear()
    assert linear.cpu_linear_plan(torch.bfloat16) == (False, torch.bfloat16)
    linear._measured_plan.cache_clear()


def test_a_pinned_plan_holds_within_its_block_and_nests():
    free = linear.cpu_linear_plan(torch.bfloat16)
    with linear.pinned_cpu_linear(torch.bfloat16, (False, torch.bfloat16)):
        assert linear.cpu_linear_plan(torch.bfloat16) == (False, torch.bfloat16)
        with linear.pinned_cpu_linear(torch.bfloat16, (True, torch.float32)):
            assert linear.cpu_linear_plan(torch.bfloat16) == (True, torch.float32)
        assert linear.cpu_linear_plan(torch.bfloat16) == (False, torch.bfloat16)
        assert linear.cpu_linear_plan(torch.float32) == linear._measured_plan(torch.float32)
    assert linear.cpu_linear_plan(torch.bfloat16) == free


@pytest.mark.parametrize("rows", [1, 9, 17, 32, 33, 384, 385, 500, 512, 513, 700, 1024, 1025, 5000])
def test_rows_are_filled_up_to_few_numbers(rows):
    """oneDNN compiles for every number of rows it meets: they are to be few, and little is to be wasted."""
    filled = linear.rows_to_pack(rows)
    wasted = 8 if rows <= 16 else 32 if rows <= 384 else 64 if rows <= linear.PART_ROWS else 256
    assert 0 <= filled - rows < wasted
    assert linear.rows_to_pack(filled) == filled
    assert len({linear.rows_to_pack(n) for n in range(1, linear.PART_ROWS + 1)}) <= 24
