"""The LayerNorm kernels against float64, with every option, dtype and awkward shape."""

import pytest
import torch
from kernel_oracle import DEVICE, DTYPES, randn, run, seed_tensor
from numerics import assert_close_to_truth

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from bert_fast import reference  # noqa: E402
from bert_fast.kernels import layer_norm as kernels  # noqa: E402

EPS = 1e-12
WIDTHS = [8, 30, 384, 768, 1000, 1024, 4096]


def inputs(tokens, hidden, dtype, x_bias=True, residual_dtype=None, parameter_dtype=None):
    parameter_dtype = parameter_dtype or residual_dtype or dtype
    return {
        "x": randn(tokens, hidden, dtype=dtype),
        "residual": randn(tokens, hidden, dtype=residual_dtype or dtype, shift=0.5),
        "weight": randn(hidden, dtype=parameter_dtype, scale=0.2, shift=1),
        "bias": randn(hidden, dtype=parameter_dtype),
        "x_bias": randn(hidden, dtype=parameter_dtype) if x_bias else None,
    }


def launch(tensors, dy, p=0.0, seed=None, site=0, **options):
    """Forward and backward of the fused form through the kernels, as kernel_oracle.run returns them."""
    dropout = {"p": p, "seed": seed, "site": site}
    y, z, mean, rstd = kernels.dropout_add_layer_norm_forward(eps=EPS, **tensors, **dropout, **options)
    dx, dresidual, dweight, dbias, dx_bias = kernels.dropout_add_layer_norm_backward(
        dy.to(y.dtype),
        z,
        mean,
        rstd,
        tensors["weight"],
        **dropout,
        x_dtype=tensors["x"].dtype,
        residual_dtype=tensors["residual"].dtype,
        x_bias_grad=tensors["x_bias"] is not None,
    )
    found = {"y": y, "dx": dx, "dresidual": dresidual, "dweight": dweight, "dbias": dbias, "dx_bias": dx_bias}
    return {name: t for name, t in found.items() if t is not None}


def check(found, tensors, dy, dtype, **dropout):
    """Every result within the contract of the truth, and in the dtype that eager PyTorch gives it."""
    truth = run(reference.dropout_add_layer_norm, tensors, dy, torch.float64, eps=EPS, **dropout)
    eager = run(reference.dropout_add_layer_norm, tensors, dy, eps=EPS, **dropout)
    assert found.keys() == eager.keys()
    for name in found:
        assert found[name].dtype == eager[name].dtype, name
        assert_close_to_truth(found[name], eager[name], truth[name], dtype, name=name)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", WIDTHS)
def test_dropout_add_layer_norm(hidden, dtype, p):
    tokens = 7 if hidden <= 1024 else 3
    tensors, dy = inputs(tokens, hidden, dtype), randn(tokens, hidden, dtype=dtype)
    dropout = {"p": p, "seed": seed_tensor(), "site": 3}
    found = launch(tensors, dy, **dropout)
    check(found, tensors, dy, dtype, **dropout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_bias_of_x(dtype):
    tensors, dy = inputs(9, 96, dtype, x_bias=False), randn(9, 96, dtype=dtype)
    check(launch(tensors, dy), tensors, dy, dtype)


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_autocast_mixes_a_16_bit_x_with_a_float32_residual(dtype, p):
    tensors, dy = inputs(9, 96, dtype, residual_dtype=torch.float32), randn(9, 96)
    dropout = {"p": p, "seed": seed_tensor(), "site": 3}
    found = launch(tensors, dy, **dropout)
    assert found["y"].dtype == torch.float32
    truth = run(reference.dropout_add_layer_norm, tensors, dy, torch.float64, eps=EPS, **dropout)
    # eager rounds x + x_bias nowhere, because x_bias is float32: held to float32 but for dx, which is dtype
    eager = run(reference.dropout_add_layer_norm, tensors, dy, eps=EPS, **dropout)
    for name in found:
        assert found[name].dtype == eager[name].dtype
        kind = dtype if name == "dx" else torch.float32
        assert_close_to_truth(found[name], eager[name], truth[name], kind, name=name)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_out_dtype_is_the_callers_to_choose(dtype):
    tensors = inputs(5, 64, dtype)
    y, z, _, _ = kernels.dropout_add_layer_norm_forward(eps=EPS, **tensors, out_dtype=torch.float32)
    assert (y.dtype, z.dtype) == (torch.float32, dtype)
    rounded, *_ = kernels.dropout_add_layer_norm_forward(eps=EPS, **tensors)
    assert torch.equal(y.to(dtype), rounded)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [30, 96, 768])
def test_plain_layer_norm(hidden, dtype):
    tensors = {
        "x": randn(6, hidden, dtype=dtype),
        "weight": randn(hidden, dtype=dtype),
        "bias": randn(hidden, dtype=dtype),
    }
    dy = randn(6, hidden, dtype=dtype)
    y, mean, rstd = kernels.layer_norm_forward(**tensors, eps=EPS)
    dx, dweight, dbias = kernels.layer_norm_backward(dy, tensors["x"], mean, rstd, tensors["weight"])
    truth = run(reference.layer_norm, tensors, dy, torch.float64, eps=EPS)
    eager = run(reference.layer_norm, tensors, dy, eps=EPS)
    for name, found in {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}.items():
        assert_close_to_truth(found, eager[name], truth[name], dtype, name=name)


def test_a_program_walks_over_many_rows(monkeypatch):
    """Few programs and many rows: the persistent loop, its last partial tile, and sums over all of it."""
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 1)
    tensors, dy = inputs(1001, 16, torch.float32), randn(1001, 16)
    check(launch(tensors, dy), tensors, dy, torch.float32)


@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_few_rows(tokens):
    tensors, dy = inputs(tokens, 48, torch.float32), randn(tokens, 48)
    dropout = {"p": 0.5, "seed": seed_tensor(), "site": 1}
    check(launch(tensors, dy, **dropout), tensors, dy, torch.float32, **dropout)


def test_the_widest_row():
    tensors, dy = inputs(2, kernels.MAX_HIDDEN, torch.float32), randn(2, kernels.MAX_HIDDEN)
    dropout = {"p": 0.1, "seed": seed_tensor(), "site": 1}
    check(launch(tensors, dy, **dropout), tensors, dy, torch.float32, **dropout)


def test_no_rows_launch_nothing_and_give_zero_sums(monkeypatch):
    tensors, dy = inputs(0, 48, torch.float32), randn(0, 48)
    monkeypatch.setattr(kernels, "_forward_kernel", None)
    monkeypatch.setattr(kernels, "_backward_kernel", None)
    found = launch(tensors, dy)
    assert found["y"].shape == found["dx"].shape == (0, 48)
    for name in ("dweight", "dbias", "dx_bias"):
        assert torch.equal(found[name], torch.zeros(48, device=DEVICE)), name


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_strided_permuted_and_broadcast_inputs(p):
    tokens, hidden = 6, 40
    dense = inputs(tokens, hidden, torch.float32)
    wide = randn(tokens, 3 * hidden)
    views = dense | {
        "x": wide[:, hidden : 2 * hidden],  # a slice of a fused projection
        "residual": randn(hidden, tokens).t(),  # last dimension not contiguous
    }
    dy = randn(1, hidden).expand(tokens, hidden)  # row stride 0, what sum().backward() hands over
    dropout = {"p": p, "seed": seed_tensor(), "site": 2}
    found = launch(views, dy, **dropout)
    expected = launch({n: t.contiguous() for n, t in views.items()}, dy.contiguous(), **dropout)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    check(found, views, dy, torch.float32, **dropout)


def test_unaligned_storage():
    """Views that begin 4 bytes into an allocation, where no 16-byte load is allowed."""
    flat = randn(6 * 64 + 1)
    tensors, dy = inputs(6, 64, torch.float32) | {"x": flat[1:].view(6, 64)}, randn(6, 64)
    check(launch(tensors, dy), tensors, dy, torch.float32)


@pytest.mark.parametrize("hidden", [30, 96])
def test_backward_regenerates_the_forwards_mask(hidden):
    """x reaches y exactly where dropout keeps it, and gradients reach x exactly there, by the reference's Philox."""
    tensors, dy = inputs(8, hidden, torch.float32), randn(8, hidden)
    dropout = {"p": 0.4, "seed": seed_tensor(99), "site": 7}
    index = torch.arange(8 * hidden).view(8, hidden)
    keep = reference.dropout_keep(dropout["seed"].cpu(), 7, 0.4, index).to(DEVICE)
    found = launch(tensors, dy, **dropout)
    assert torch.equal(found["dx"] != 0, keep)
    _, z, _, _ = kernels.dropout_add_layer_norm_forward(eps=EPS, **tensors, **dropout)
    assert torch.equal(z != tensors["residual"], keep)


def test_same_seed_same_bits_and_other_seeds_and_sites_differ():
    tensors, dy = inputs(8, 96, torch.float32), randn(8, 96)
    first = launch(tensors, dy, p=0.3, seed=seed_tensor(1), site=1)
    again = launch(tensors, dy, p=0.3, seed=seed_tensor(1), site=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for changed in ({"seed": seed_tensor(2), "site": 1}, {"seed": seed_tensor(1), "site": 2}):
        assert not torch.equal(first["y"], launch(tensors, dy, p=0.3, **changed)["y"])


def test_everything_dropped_leaves_the_residual():
    tensors, dy = inputs(5, 64, torch.float32), randn(5, 64)
    found = launch(tensors, dy, p=1.0, seed=seed_tensor())
    y, _, _ = kernels.layer_norm_forward(tensors["residual"], tensors["weight"], tensors["bias"], EPS)
    assert torch.equal(found["y"], y)
    assert not found["dx"].any() and not found["dx_bias"].any()


def test_gradients_share_a_tensor_only_where_they_are_equal():
    tensors, dy = inputs(5, 64, torch.float32), randn(5, 64)
    same = launch(tensors, dy)
    assert same["dx"] is same["dresidual"]
    for found in (
        launch(tensors, dy, p=0.1, seed=seed_tensor()),
        launch(inputs(5, 64, torch.float16, residual_dtype=torch.float32), dy),
    ):
        assert found["dx"].data_ptr() != found["dresidual"].data_ptr()


def test_inference_saves_nothing_and_changes_no_bit():
    tensors = inputs(5, 96, torch.float16)
    saved = kernels.dropout_add_layer_norm_forward(eps=EPS, **tensors)
    bare = kernels.dropout_add_layer_norm_forward(eps=EPS, **tensors, save=False)
    assert torch.equal(bare[0], saved[0])
    assert bare[1:] == (None, None, None)


def test_a_second_gradient_of_y_is_added_on_the_way_in():
    tensors, dy, more = inputs(7, 96, torch.float32), randn(7, 96), randn(7, 96)
    y, z, mean, rstd = kernels.dropout_add_layer_norm_forward(eps=EPS, **tensors)
    saved = (z, mean, rstd, tensors["weight"])
    fused = kernels.dropout_add_layer_norm_backward(dy, *saved, x_bias_grad=True, dy_more=more)
    apart = kernels.dropout_add_layer_norm_backward(dy + more, *saved, x_bias_grad=True)
    for a, b in zip(fused, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_far_from_zero(dtype):
    """A mean of many deviations: one-pass variance cancels here, two passes over registers do not."""
    shift = 1000.0 if dtype == torch.float32 else 50.0
    tensors = inputs(7, 96, dtype) | {"x": randn(7, 96, dtype=dtype, shift=shift)}
    dy = randn(7, 96, dtype=dtype)
    check(launch(tensors, dy), tensors, dy, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_eps_of_1e_12_survives_16_bits(dtype):
    """Constant rows have variance 0: eps is all there is, and in float16 it would be 0."""
    x = torch.full((4, 64), 3.0, device=DEVICE, dtype=dtype)
    weight, bias = randn(64, dtype=dtype), randn(64, dtype=dtype)
    y, mean, rstd = kernels.layer_norm_forward(x, weight, bias, EPS)
    assert torch.equal(y, bias.expand(4, 64))
    assert torch.equal(mean, torch.full((4,), 3.0, device=DEVICE))
    torch.testing.assert_close(rstd, torch.full((4,), 1e6, device=DEVICE), rtol=1e-5, atol=0)


def test_weights_of_zero_keep_their_gradient():
    """Why z is saved and not y: where weight is 0 nothing of z can be read back from y, yet dweight needs it."""
    tensors, dy = inputs(7, 96, torch.float32), randn(7, 96)
    tensors["weight"][::3] = 0
    check(launch(tensors, dy), tensors, dy, torch.float32)


def test_bad_shapes_dtypes_and_seeds_are_named():
    good = inputs(4, 32, torch.float32)
    for changed, message in (
        ({"x": randn(4, 2, 16)}, "residual must have x's shape"),
        ({"residual": randn(4, 31)}, r"residual must have x's shape \(4, 32\), not \(4, 31\)"),
        ({"x": randn(2, 8193), "residual": randn(2, 8193)}, "H <= 8192"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.dropout_add_layer_norm_forward(eps=EPS, **(good | changed))
    with pytest.raises(TypeError, match="x must be float32, float16 or bfloat16"):
        kernels.dropout_add_layer_norm_forward(eps=EPS, **(good | {"x": good["x"].double()}))
    with pytest.raises(ValueError, match="seed must be an int64 tensor"):
        kernels.dropout_add_layer_norm_forward(eps=EPS, **good, p=0.1)
    y, z, mean, rstd = kernels.dropout_add_layer_norm_forward(eps=EPS, **good)
    with pytest.raises(ValueError, match="dy must have the shape"):
        kernels.dropout_add_layer_norm_backward(y[1:], z, mean, rstd, good["weight"])


@pytest.mark.gpu
@pytest.mark.parametrize("p", [0.0, 0.1])
def test_a_large_batch(p):
    tensors, dy = inputs(65536, 768, torch.bfloat16), randn(65536, 768, dtype=torch.bfloat16)
    dropout = {"p": p, "seed": seed_tensor(), "site": 3}
    check(launch(tensors, dy, **dropout), tensors, dy, torch.bfloat16, **dropout)


@pytest.mark.gpu
def test_offsets_beyond_2_31_elements():
    tokens, hidden = 2**31 // 1024 + 3, 1024
    x = torch.zeros(tokens, hidden, device=DEVICE, dtype=torch.bfloat16)
    x[-1] = randn(hidden, dtype=torch.bfloat16)
    weight, bias = torch.ones(hidden, device=DEVICE), torch.zeros(hidden, device=DEVICE)
    y, _, _, _ = kernels.dropout_add_layer_norm_forward(x, x, weight, bias, EPS, save=False)
    expected, _, _ = kernels.layer_norm_forward(2 * x[-1:], weight, bias, EPS)
    assert torch.equal(y[-1:], expected)
    assert not y[:-1].any()


@pytest.mark.gpu
def test_launches_on_the_tensors_device_and_stream():
    stream = torch.cuda.Stream()
    tensors, dy = inputs(64, 768, torch.bfloat16), randn(64, 768, dtype=torch.bfloat16)
    expected = launch(tensors, dy)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        found = launch(tensors, dy)
    stream.synchronize()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
