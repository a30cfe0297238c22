"""Pooling of packed tokens against a loop over sequences in float64."""

import pytest
import torch

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
