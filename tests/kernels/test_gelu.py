"""The bias_gelu and gelu_layer_norm kernels against float64."""

import pytest
import torch
from kernel_oracle import DEVICE, DTYPES, randn, run
from numerics import assert_close_to_truth

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from bert_fast import reference  # noqa: E402
from bert_fast.kernels import gelu as kernels  # noqa: E402

EPS = 1e-12


def check(found, function, tensors, dy, dtype, **options):
    truth = run(function, tensors, dy, torch.float64, **options)
    eager = run(function, tensors, dy, **options)
    assert found.keys() == eager.keys()
    for name in found:
        assert found[name].dtype == eager[name].dtype, name
        assert_close_to_truth(found[name], eager[name], truth[name], dtype, name=name)


def launch_bias_gelu(x, bias, dy, approximate):
    dx, dbias = kernels.bias_gelu_backward(dy, x, bias, approximate)
    found = {"y": kernels.bias_gelu_forward(x, bias, approximate), "dx": dx, "dbias": dbias}
    return {name: t for name, t in found.items() if t is not None}


def launch_gelu_layer_norm(x, bias, weight, ln_bias, dy, approximate):
    y, mean, rstd = kernels.gelu_layer_norm_forward(x, bias, weight, ln_bias, EPS, approximate)
    dx, dbias, dweight, dln_bias = kernels.gelu_layer_norm_backward(dy, x, bias, mean, rstd, weight, approximate)
    found = {"y": y, "dx": dx, "dbias": dbias, "dweight": dweight, "dln_bias": dln_bias}
    return {name: t for name, t in found.items() if t is not None}


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 30, 312, 1000, 1536, 3072])
def test_bias_gelu(width, dtype, approximate, with_bias):
    x, dy = randn(5, width, dtype=dtype, scale=2), randn(5, width, dtype=dtype)
    bias = randn(width, dtype=dtype) if with_bias else None
    found = launch_bias_gelu(x, bias, dy, approximate)
    check(found, reference.bias_gelu, {"x": x, "bias": bias}, dy, dtype, approximate=approximate)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [30, 96, 768])
def test_gelu_layer_norm(hidden, dtype, approximate, with_bias):
    tensors = {
        "x": randn(5, hidden, dtype=dtype),
        "bias": randn(hidden, dtype=dtype) if with_bias else None,
        "weight": randn(hidden, dtype=dtype, scale=0.2, shift=1),
        "ln_bias": randn(hidden, dtype=dtype),
    }
    dy = randn(5, hidden, dtype=dtype)
    found = launch_gelu_layer_norm(**tensors, dy=dy, approximate=approximate)
    check(found, reference.gelu_layer_norm, tensors, dy, dtype, eps=EPS, approximate=approximate)


def test_a_program_walks_over_many_rows(monkeypatch):
    """Few programs and many rows: the persistent loop, its last partial tile, and sums over all of it."""
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 1)
    x, bias, dy = randn(3001, 16), randn(16), randn(3001, 16)
    check(launch_bias_gelu(x, bias, dy, "none"), reference.bias_gelu, {"x": x, "bias": bias}, dy, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_and_tanh_are_not_confused(dtype):
    """hidden_act="gelu" is erf. The two differ by up to 5e-4, far beyond float16's rounding near x = 2.7."""
    x = torch.linspace(2, 3, 64, device=DEVICE).to(dtype)[None]
    erf, tanh = (kernels.bias_gelu_forward(x, None, approximate).double() for approximate in ("none", "tanh"))
    exact = reference.gelu(x.double())
    assert (erf - exact).abs().max() < (tanh - exact).abs().max()
    assert (tanh - reference.gelu(x.double(), "tanh")).abs().max() < (
        erf - reference.gelu(x.double(), "tanh")
    ).abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_far_tail_goes_to_zero_from_below(dtype):
    x = torch.linspace(-30, -4, 128, device=DEVICE).to(dtype)[None]
    for approximate in ("none", "tanh"):
        y = kernels.bias_gelu_forward(x, None, approximate).float()
        # cancellation in 1 + erf leaves eager float32 with errors of this size, too
        assert (y <= 0).all()
        assert (y.double() - reference.gelu(x.double(), approximate)).abs().max() < 1e-6


def test_strided_permuted_and_broadcast_inputs():
    wide, bias = randn(6, 3 * 40), randn(40)
    for x in (wide[:, 40:80], randn(40, 6).t(), randn(1, 40).expand(6, 40)):
        dy = randn(1, 40).expand(6, 40)
        found = launch_bias_gelu(x, bias, dy, "none")
        expected = launch_bias_gelu(x.contiguous(), bias, dy.contiguous(), "none")
        for name in expected:
            assert torch.equal(found[name], expected[name]), name
        tensors = {"x": x, "bias": bias}
        check(found, reference.bias_gelu, tensors, dy, torch.float32)


def test_float32_bias_under_16_bit_x():
    x, bias, dy = randn(5, 64, dtype=torch.float16), randn(64), randn(5, 64, dtype=torch.float16)
    found = launch_bias_gelu(x, bias, dy, "none")
    assert (found["y"].dtype, found["dx"].dtype, found["dbias"].dtype) == (torch.float16, torch.float16, torch.float32)
    truth = run(reference.bias_gelu, {"x": x, "bias": bias}, dy, torch.float64)
    eager = run(reference.bias_gelu, {"x": x, "bias": bias.half()}, dy)
    for name in found:
        assert_close_to_truth(found[name], eager[name], truth[name], torch.float16, name=name)


def test_same_bits_every_time():
    x, bias, dy = randn(50, 96), randn(96), randn(50, 96)
    first, again = (launch_bias_gelu(x, bias, dy, "none") for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_no_rows_launch_nothing_and_give_zero_sums(monkeypatch):
    monkeypatch.setattr(kernels, "_forward_kernel", None)
    monkeypatch.setattr(kernels, "_backward_kernel", None)
    found = launch_bias_gelu(randn(0, 48), randn(48), randn(0, 48), "none")
    assert found["y"].shape == found["dx"].shape == (0, 48)
    assert torch.equal(found["dbias"], torch.zeros(48, device=DEVICE))
    tensors = {"x": randn(0, 48), "bias": randn(48), "weight": randn(48), "ln_bias": randn(48)}
    found = launch_gelu_layer_norm(**tensors, dy=randn(0, 48), approximate="none")
    assert torch.equal(found["dweight"], torch.zeros(48, device=DEVICE))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"x must be \[T, I\]"):
        kernels.bias_gelu_forward(randn(2, 3, 4), None)
    with pytest.raises(ValueError, match=r"bias must be \[4\], not \(5,\)"):
        kernels.bias_gelu_forward(randn(3, 4), randn(5))
    with pytest.raises(ValueError, match="approximate must be \"none\" .* not 'new'"):
        kernels.bias_gelu_forward(randn(3, 4), None, "new")
    with pytest.raises(ValueError, match="dy must have x's shape"):
        kernels.bias_gelu_backward(randn(2, 4), randn(3, 4), None)
    with pytest.raises(TypeError, match="x must be float32, float16 or bfloat16"):
        kernels.bias_gelu_forward(randn(3, 4).double(), None)


@pytest.mark.gpu
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_large_batch(approximate):
    x, bias = randn(65536, 3072, dtype=torch.bfloat16), randn(3072, dtype=torch.bfloat16)
    dy = randn(65536, 3072, dtype=torch.bfloat16)
    found = launch_bias_gelu(x, bias, dy, approximate)
    rows = slice(0, None, 97)  # float64 of all of it would take minutes; dbias is judged below, on all rows
    tensors = {"x": x[rows], "bias": bias}
    truth = run(reference.bias_gelu, tensors, dy[rows], torch.float64, approximate=approximate)
    eager = run(reference.bias_gelu, tensors, dy[rows], approximate=approximate)
    for name in ("y", "dx"):
        assert_close_to_truth(found[name][rows], eager[name], truth[name], torch.bfloat16, name=name)
    expected = found["dx"].double().sum(0)
    torch.testing.assert_close(found["dbias"].double(), expected, rtol=2**-7, atol=2.0)
