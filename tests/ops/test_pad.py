"""Rows out of the padded world and back: the extension's kernels on a GPU and emulated, and PyTorch's own ops."""

import pytest
import torch

from bert_fast import backend, ops

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex128]
MASKS = {
    "holes": torch.rand(7, 13, generator=torch.Generator().manual_seed(0)) < 0.5,
    "right": torch.arange(40) < torch.tensor([[40], [1], [0], [17]]),
    "left": torch.arange(9) >= torch.tensor([[0], [8], [9]]),
    "all": torch.ones(3, 5, dtype=torch.bool),
    "none": torch.zeros(3, 5, dtype=torch.bool),
    "last": torch.tensor([[False] * 6, [False] * 5 + [True]]),
    "no_rows": torch.zeros(0, 4, dtype=torch.bool),
}


def rows(count, shape, dtype, device="cpu"):
    values = torch.randint(-9, 9, (count, *shape), generator=torch.Generator().manual_seed(1))
    return values.to(device, dtype)


def check(mask, shape, dtype, device):
    indices = mask.flatten().nonzero().squeeze(1)
    x, padded = rows(len(indices), shape, dtype), rows(mask.numel(), shape, dtype).unflatten(0, mask.shape)
    want = torch.zeros(mask.numel(), *shape, dtype=dtype)
    want[indices] = x
    got = ops.pad_rows(x.to(device), indices.to(device), *mask.shape)
    assert torch.equal(got.cpu(), want.unflatten(0, mask.shape))
    assert torch.equal(ops.unpad_rows(padded.to(device), indices.to(device)).cpu(), padded.flatten(0, 1)[indices])


@pytest.mark.parametrize("shape", [(), (3,), (1, 2), (32,), (40,), (100,), (0,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_pytorch_moves_rows_of_any_width_and_dtype(mask, dtype, shape):
    check(MASKS[mask], shape, dtype, "cpu")
    assert backend.decisions()["pad_rows"][0] == "reference"


@pytest.mark.parametrize("shape", [(), (3,), (1, 2), (32,), (40,), (100,), (0,)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_the_kernel_moves_rows_of_any_width_and_dtype(mask, dtype, shape, cuda_device):
    check(MASKS[mask], shape, dtype, cuda_device)
    assert backend.decisions()["pad_rows"] == ("cuda", {})


@pytest.mark.parametrize("mask", MASKS)
def test_the_kernels_are_each_others_gradients_twice(mask, cuda_device):
    mask = MASKS[mask]
    indices = mask.flatten().nonzero().squeeze(1).to(cuda_device)
    x = rows(len(indices), (5,), torch.float64, cuda_device).requires_grad_()
    padded = rows(mask.numel(), (5,), torch.float64, cuda_device).unflatten(0, mask.shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.pad_rows(x, indices, *mask.shape), x)
    assert torch.autograd.gradcheck(lambda x: ops.unpad_rows(x, indices), padded)
    assert backend.decisions()["unpad_rows"] == ("cuda", {})
    assert torch.autograd.gradgradcheck(lambda x: ops.pad_rows(x, indices, *mask.shape), x)


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_the_kernels_move_rows_that_are_not_aligned(offset, cuda_device):
    mask = MASKS["holes"]
    indices = mask.flatten().nonzero().squeeze(1).to(cuda_device)
    x = rows(len(indices) * 32 + offset, (), torch.bfloat16, cuda_device)[offset:].view(-1, 32)
    assert torch.equal(ops.pad_rows(x, indices, *mask.shape), ops.pad_rows(x.clone(), indices, *mask.shape))


def test_the_kernels_move_a_strided_tensor(cuda_device):
    mask = MASKS["holes"]
    indices = mask.flatten().nonzero().squeeze(1).to(cuda_device)
    x = rows(8, (len(indices),), torch.float32, cuda_device).t()
    assert torch.equal(ops.pad_rows(x, indices, *mask.shape), ops.pad_rows(x.contiguous(), indices, *mask.shape))


def test_opcheck_of_the_kernels(cuda_device):
    indices = MASKS["holes"].flatten().nonzero().squeeze(1).to(cuda_device)
    x, padded = (rows(n, (6,), torch.float32, cuda_device).requires_grad_() for n in (len(indices), 91))
    torch.library.opcheck(torch.ops.bert_fast.scatter_rows.default, (x, indices, 91))
    torch.library.opcheck(torch.ops.bert_fast.gather_rows.default, (padded, indices))


def test_compiled_the_kernels_recompile_at_most_once_for_any_count(cuda_device):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def run(x, mask):
        indices = ops.unpad(mask)[0]
        return ops.pad_rows(ops.unpad_rows(x, indices) * 2, indices, *mask.shape)

    for step in range(6):
        count, length = 2 + step % 4, 3 + step
        x = torch.randn(count, length, 5).to(cuda_device).requires_grad_()
        mask = (torch.rand(count, length) < 0.6).to(cuda_device)
        out = run(x, mask)
        out.backward(torch.ones_like(out))
        assert torch.equal(out, 2 * x * mask[..., None])
        assert torch.equal(x.grad, 2.0 * mask[..., None].expand_as(x))
    assert counter.frame_count <= 2


def test_inside_torch_func_pytorch_moves_the_rows(cuda_device):
    mask = MASKS["holes"]
    indices = mask.flatten().nonzero().squeeze(1).to(cuda_device)
    x = torch.randn(3, len(indices), 4).to(cuda_device)
    got = torch.func.vmap(lambda x: ops.pad_rows(x, indices, *mask.shape))(x)
    for one, padded in zip(x, got, strict=True):
        assert torch.equal(padded, ops.pad_rows(one, indices, *mask.shape))
