"""rotary: queries and keys turned by their positions, against multiplication of complex numbers."""

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import ops, reference

T, N, D = 23, 3, 12


def inputs(shape=(T, 2, N, D), dtype=torch.float64):
    angles = torch.rand(T, D // 2, dtype=torch.float64) * 40
    return torch.randn(shape, dtype=torch.float64).to(dtype), angles.cos(), angles.sin()


def by_definition(x, cos, sin):
    first, second = x.double().chunk(2, -1)
    turn = torch.complex(cos, sin).view(T, *[1] * (x.dim() - 2), -1)
    turned = torch.complex(first, second) * turn
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("shape", [(T, N, D), (T, 2, N, D)], ids=str)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_holds_the_contract(dtype, grad, shape):
    x, cos, sin = inputs(shape, dtype)
    cos, sin = cos.float(), sin.float()
    with torch.set_grad_enabled(grad):
        got = ops.rotary(x, cos, sin)
    assert got.dtype == dtype and got.is_contiguous()
    assert_close_to_truth(got, reference.rotary(x, cos, sin), by_definition(x, cos.double(), sin.double()), dtype)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_rows_of_any_stride(grad):
    x, cos, sin = (t.float() for t in inputs((T, 3, N, D)))
    want = by_definition(x[:, :2], cos.double(), sin.double()).float()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(ops.rotary(x[:, :2], cos, sin), want)
        turned = x.transpose(0, 3).contiguous().transpose(0, 3)
        torch.testing.assert_close(ops.rotary(turned[:, :2], cos, sin), want)
        wide = torch.randn(T, D)
        wide[:, ::2] = cos
        torch.testing.assert_close(ops.rotary(x[:, :2], wide[:, ::2], sin), want)


def test_gradients():
    x, cos, sin = inputs((T, N, D))
    x = x[:5].requires_grad_()
    torch.autograd.gradcheck(lambda x: ops.rotary(x, cos[:5], sin[:5]), x)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
    x, cos, sin = (t.float()[:rows] for t in inputs())
    with torch.no_grad():
        torch.testing.assert_close(ops.rotary(x, cos, sin), reference.rotary(x, cos, sin))


def test_shapes_that_do_not_fit_are_named():
    x, cos, sin = inputs()
    for bad in ((x[..., :-1], cos, sin), (x, cos[:-1], sin[:-1]), (x, cos, sin[:, :-1]), (x, cos[:, :-1], sin[:, :-1])):
        with pytest.raises(ValueError, match="cos and sin must be"):
            ops.rotary(*bad)
