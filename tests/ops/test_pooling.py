"""Pooling of packed tokens against a loop over sequences in float64; the kernels on a GPU, and emulated on the host."""

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import backend, reference
from bert_fast.ops.pooling import POOLINGS, pool

LENGTHS = [3, 1, 0, 17, 2, 0]


def packed(lengths, hidden=24, dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    cu = torch.tensor(
        [0, *torch.tensor(lengths).cumsum(0).tolist()] if lengths else [0], dtype=torch.int32, device=device
    )
    return torch.randn(int(cu[-1]), hidden, dtype=dtype, device=device), cu


def truth(x, cu, mode):
    rows = []
    for start, stop in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        part = x[start:stop].double().cpu()
        if len(part) == 0:
            rows.append(torch.zeros(x.shape[1], dtype=torch.float64))
        else:
            rows.append({"mean": part.mean(0), "max": part.amax(0), "cls": part[0]}[mode])
    return torch.stack(rows) if rows else torch.zeros(0, x.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_against_a_loop_in_float64(mode, dtype, normalize, device):
    x, cu = packed(LENGTHS, dtype=dtype, device=device)
    expected = truth(x, cu, mode)
    if normalize:
        expected = torch.nn.functional.normalize(expected, dim=-1)
    got = pool(x, cu, mode, normalize)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (got.cpu().double() - expected).abs().max() <= 8 * 2**-24 * expected.abs().max()


@pytest.mark.parametrize("mode", POOLINGS)
def test_gradients_are_those_of_the_loop(mode):
    x, cu = packed([3, 1, 5], dtype=torch.float64)
    x.requires_grad_()
    weight = torch.randn(3, x.shape[1], dtype=torch.float64)
    (got,) = torch.autograd.grad((pool(x, cu, mode) * weight).sum(), x)
    (expected,) = torch.autograd.grad((truth(x, cu, mode) * weight).sum(), x)
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", POOLINGS)
def test_a_sequence_pools_to_the_same_bits_in_any_batch(mode):
    x, cu = packed([7, 40, 3])
    alone = pool(x[7:47].clone(), torch.tensor([0, 40]), mode, True)
    assert torch.equal(pool(x, cu, mode, True)[1], alone[0])


@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens(mode, lengths):
    x, cu = packed(lengths)
    assert torch.equal(pool(x, cu, mode, True), torch.zeros(len(lengths), 24))


def test_strided_input():
    x, cu = packed(LENGTHS, hidden=48)
    for mode in POOLINGS:
        assert torch.equal(pool(x[:, ::2], cu, mode), pool(x[:, ::2].contiguous(), cu, mode))


def test_bad_arguments_are_named():
    x, cu = packed([2, 3])
    with pytest.raises(ValueError, match="mode='sum': allowed are mean, cls, max"):
        pool(x, cu, "sum")
    with pytest.raises(ValueError, match=r"hidden is torch.float32 \[1, 5, 24\]"):
        pool(x[None], cu)
    with pytest.raises(ValueError, match="cu_seqlens is"):
        pool(x, cu[None])
    with pytest.raises(ValueError, match="rise from 0 to the 5 tokens"):
        pool(x, torch.tensor([0, 9]))
    with pytest.raises(ValueError, match="rise from 0"):
        pool(x, torch.tensor([0, 7, 5]))


@pytest.mark.parametrize("special", ["ties", "nan", "infinite"])
def test_a_maximums_gradient_goes_to_the_first_row_that_it_is_in(special):
    x, cu = packed(LENGTHS)
    if special == "ties":
        x = x.round()
    x[5, 3], x[7, 3] = {"ties": (9.0, 9.0), "nan": (torch.nan, torch.nan), "infinite": (torch.inf, torch.inf)}[special]
    x[3] = -torch.inf  # a sequence of one token
    check_maximum(x, cu)


def check_maximum(x, cu):
    x.requires_grad_()
    upstream = torch.randn(len(cu) - 1, x.shape[1]).to(x.device)
    got = pool(x, cu, "max")
    (dx,) = torch.autograd.grad(got, x, upstream)
    want = torch.zeros_like(x)
    for b, (start, stop) in enumerate(zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True)):
        if start < stop:
            values, places = x.detach()[start:stop].cpu().max(0)
            torch.testing.assert_close(got[b].cpu(), values.float(), rtol=0, atol=0, equal_nan=True)
            want[start:stop].scatter_(0, places[None].to(x.device), upstream[b : b + 1].to(x))
        else:
            assert (got[b] == 0).all()
    assert torch.equal(dx, want)


# The extension's kernels


def gradients(function, x, upstream, *arguments):
    x = x.detach().requires_grad_()
    out = function(x, *arguments)
    return out.detach(), torch.autograd.grad(out, x, upstream.to(out))[0]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden", [24, 7, 384, 3])
@pytest.mark.parametrize("mode", POOLINGS)
def test_the_kernels_hold_the_contract_with_gradients(mode, hidden, dtype, normalize, cuda_device):
    x, cu = packed([3, 1, 0, 71, 2, 0], hidden, dtype)
    upstream = torch.randn(len(cu) - 1, hidden)
    got = gradients(pool, x.to(cuda_device), upstream.to(cuda_device), cu.to(cuda_device), mode, normalize)
    assert backend.decisions()["pool"] == ("cuda", {})
    assert got[0].dtype == torch.float32 and got[1].dtype == dtype
    eager, truth = (
        gradients(reference.pool, x.to(kind), upstream, cu, mode, normalize) for kind in (dtype, torch.float64)
    )
    assert_close_to_truth(got[0], eager[0], truth[0], torch.float32, name="vectors")
    assert_close_to_truth(got[1], eager[1], truth[1], dtype, name="gradient")


@pytest.mark.parametrize("special", ["ties", "nan", "infinite"])
def test_the_kernels_give_a_maximums_gradient_to_the_first_row(special, cuda_device):
    x, cu = packed([3, 1, 0, 71, 2, 0], 12)
    x = x.round()
    x[5, 3], x[40, 3] = {"ties": (9.0, 9.0), "nan": (torch.nan, torch.nan), "infinite": (torch.inf, torch.inf)}[special]
    x[3] = -torch.inf
    check_maximum(x.to(cuda_device), cu.to(cuda_device))
    assert backend.decisions()["pool"] == ("cuda", {})


@pytest.mark.parametrize("mode", POOLINGS)
def test_the_kernels_pool_a_sequence_to_the_same_bits_in_any_batch(mode, cuda_device):
    x, cu = packed([7, 40, 3], device=cuda_device)
    alone = pool(x[7:47].clone(), torch.tensor([0, 40], device=cuda_device), mode, True)
    assert torch.equal(pool(x, cu, mode, True)[1], alone[0])


@pytest.mark.parametrize("mode", POOLINGS)
def test_the_kernels_and_vectors_of_no_length(mode, cuda_device):
    x, cu = packed([2, 3], 8, device=cuda_device)
    got = gradients(pool, x * 0, torch.ones(2, 8, device=cuda_device), cu, mode, True)
    want = gradients(reference.pool, x * 0, torch.ones(2, 8, device=cuda_device), cu, mode, True)
    for left, right in zip(got, want, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("mode", POOLINGS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_the_kernels_and_no_tokens(lengths, mode, cuda_device):
    x, cu = packed(lengths, device=cuda_device)
    got = gradients(pool, x, torch.ones(len(lengths), 24, device=cuda_device), cu, mode, True)
    assert torch.equal(got[0].cpu(), torch.zeros(len(lengths), 24))
    assert got[1].shape == (0, 24)


def test_opcheck_and_compilation_of_the_kernels(cuda_device):
    torch._dynamo.reset()
    x, cu = packed(LENGTHS, 16, device=cuda_device)
    upstream = torch.randn(len(LENGTHS), 16).to(cuda_device)
    utils = ("test_schema", "test_faketensor")
    op, op_grad = torch.ops.bert_fast.pool.default, torch.ops.bert_fast.pool_backward.default
    for code, mode in enumerate(POOLINGS):
        leaf = x.clone().requires_grad_()
        torch.library.opcheck(op, (leaf, cu, code, True, True), test_utils=(*utils, "test_autograd_registration"))
        saved = op(x, cu, code, True, True)
        torch.library.opcheck(op_grad, (upstream, cu, *saved, len(x), x.dtype, code, True), test_utils=utils)
        compiled = torch.compile(lambda x, mode=mode: pool(x, cu, mode, True), backend="aot_eager", fullgraph=True)
        want = gradients(pool, x, upstream, cu, mode, True)
        for left, right in zip(gradients(compiled, x, upstream), want, strict=True):
            assert torch.equal(left, right)
