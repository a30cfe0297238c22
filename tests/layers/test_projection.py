"""Calling a linear layer, or reading past it: which way is taken, and in which dtype it answers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bert_fast import derived
from bert_fast.layers import projection
from bert_fast.ops.linear import rows_to_pack

ROWS = rows_to_pack(50)


@pytest.fixture
def linear():
    return nn.Linear(48, 90)


def rows(dtype=torch.float32, count=ROWS):
    return torch.randn(count, 48).to(dtype)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cpu_linear", ["onednn", "torch"], indirect=True)
def test_linears_take_the_autocast_dtype(cpu_linear, dtype, grad, linear):
    x = rows()
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
        assert projection.compute_dtype(torch.float32, x.device) == torch.float32
        outputs = [
            projection.project(linear, x),
            projection.project(linear, x, "gelu"),
        ]
        assert projection.project_joined((linear, linear), x) is None
        assert projection.project_and_add(linear, x, torch.randn(ROWS, 90)) is None
    assert {y.dtype for y in outputs} == {dtype}


@pytest.mark.parametrize("cpu_linear", ["onednn", "torch"], indirect=True)
def test_what_is_derived_under_each_setting(cpu_linear, linear):
    with torch.no_grad():
        projection.project(linear, rows())
        projection.project_joined((linear, linear), rows())
    keys = set(derived._entries.get(linear, {}))
    packed = {("packed", 1, torch.float32), ("packed", 2, torch.float32)}
    assert keys == (packed if cpu_linear == "onednn" else {"joined"})


@pytest.mark.parametrize("cpu_linear", ["onednn"], indirect=True)
def test_nothing_is_derived_with_gradients(cpu_linear, linear):
    projection.project(linear, rows())
    projection.project_joined((linear, linear), rows())
    assert linear not in derived._entries


@pytest.mark.parametrize("hidden_act", [None, "gelu", "gelu_new", "relu"])
@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS])
@pytest.mark.parametrize("cpu_linear", ["onednn", "torch"], indirect=True)
def test_any_number_of_rows_and_any_activation(cpu_linear, count, hidden_act, linear):
    x = rows(count=count)
    activations = {
        None: lambda y: y,
        "gelu": F.gelu,
        "gelu_new": lambda y: F.gelu(y, approximate="tanh"),
        "relu": F.relu,
    }
    want = activations[hidden_act](F.linear(x, linear.weight, linear.bias))
    with torch.no_grad():
        assert torch.allclose(projection.project(linear, x, hidden_act), want, rtol=0, atol=1e-5)
    assert torch.allclose(projection.project(linear, x, hidden_act), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cpu_linear", ["onednn", "torch"], indirect=True)
def test_joined_layers_are_of_one_width_and_one_kind(cpu_linear):
    layers = [nn.Linear(48, 90) for _ in range(3)]
    bare = nn.Linear(48, 90, bias=False)
    x = rows()
    with torch.no_grad():
        for group in (layers, [bare, bare]):
            got = projection.project_joined(tuple(group), x)
            assert torch.allclose(got, torch.stack([layer(x) for layer in group], 1), rtol=0, atol=1e-5)
        for odd in (bare, nn.Linear(48, 16), nn.Linear(48, 90).double()):
            assert projection.project_joined((layers[0], odd), x) is None


@pytest.mark.parametrize("cpu_linear", ["onednn"], indirect=True)
def test_a_residual_of_another_dtype_is_not_added_in_the_product(cpu_linear, linear):
    with torch.no_grad():
        assert projection.project_and_add(linear, rows(), torch.randn(ROWS, 90).double()) is None
        residual = torch.randn(ROWS, 90)
        got = projection.project_and_add(linear, x := rows(), residual)
    assert torch.allclose(got, residual + linear(x), rtol=0, atol=1e-5)


def test_a_module_that_must_be_called_keeps_the_rows_dtype():
    linear = nn.Linear(48, 90).to(torch.bfloat16)
    x = rows()
    y = projection.call(linear, x)
    assert y.dtype == torch.float32
    assert torch.equal(y, linear(x.to(torch.bfloat16)).float())
    assert projection.call(nn.Tanh(), rows()).dtype == torch.float32
