"""The row arithmetic of the CUDA cross-entropy, run on the host by harness.cpp, against float64."""

import ctypes

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import reference

DTYPES = {"f": torch.float32, "h": torch.float16, "b": torch.bfloat16}
HELD = "wslx"  # a row in registers, by a warp or by 128, 512 or 1,024 threads
INF = float("inf")


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def kinds(harness: ctypes.CDLL, classes: int, dtype: str) -> str:
    """Every way of sharing that can hold such a row, and those that need not."""
    limits = (ctypes.c_int64 * 4)()
    harness.harness_resident_bytes(limits)
    size = torch.empty(0, dtype=DTYPES[dtype]).element_size()
    return "".join(kind for kind, limit in zip(HELD, limits, strict=True) if classes * size <= limit) + "tu"


def run(harness, kind, logits, labels, *, smoothing=0.0, z_loss=0.0, scale=1.0, in_place=False, grad_offset=0):
    """Losses, statistics and gradient, which lies `grad_offset` elements past the logits' place in 16 bytes."""
    rows, classes = logits.shape
    dtype = next(name for name, torch_name in DTYPES.items() if torch_name == logits.dtype)
    losses, statistics = torch.full((rows,), float("nan")), torch.full((rows, 2), float("nan"))
    size = logits.element_size()
    if in_place:
        grad = logits
    else:
        storage = torch.full((rows * logits.stride(0) + 64,), float("nan"), dtype=logits.dtype)
        start = (logits.data_ptr() - storage.data_ptr()) % 16 // size + grad_offset
        grad = storage[start:].as_strided(logits.shape, logits.stride())
    numbers = (ctypes.c_float(x) for x in (smoothing, z_loss, scale))
    harness.harness_cross_entropy(
        *(ctypes.c_char(name.encode()) for name in (kind, dtype)),
        *(pointer(logits), pointer(grad), ctypes.c_int64(logits.stride(0)), ctypes.c_int64(grad.stride(0))),
        *(pointer(labels), ctypes.c_int64(rows), ctypes.c_int64(classes), *numbers),
        *(pointer(losses), pointer(statistics)),
    )
    if not in_place:
        rest = storage.clone()
        rest[start:].as_strided(logits.shape, logits.stride()).fill_(float("nan"))
        assert rest.isnan().all(), "something beside the gradient was written"
    return losses, statistics, grad


def truth(logits, labels, dtype, **options):
    scale = options.pop("scale", 1.0)
    leaf = logits.to(dtype, copy=True).requires_grad_()
    losses = reference.cross_entropy(leaf, labels, reduction="none", **options)
    return losses.detach(), torch.autograd.grad(losses, leaf, torch.full_like(losses, scale))[0]


def make(rows: int, classes: int, dtype: str, *, offset: int = 0, stride: int | None = None):
    stride = stride or classes
    storage = torch.randn(rows * stride + 16, generator=torch.Generator().manual_seed(classes)) * 3
    storage = storage.to(DTYPES[dtype])
    labels = torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(1))
    return storage[offset:].as_strided((rows, classes), (stride, 1)), labels


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 300, 1024, 1025, 4099, 8192, 9001, 30522, 32768, 50368])
def test_every_way_of_sharing_a_row_holds_the_contract(harness: ctypes.CDLL, classes: int, dtype: str) -> None:
    logits, labels = make(2, classes, dtype, offset=1)
    # The gradient of a single class is nothing but the z-loss's, and what the others leave of theirs is rounding.
    z_loss = 1e-3 if classes > 1 else 0.0
    options = {"label_smoothing": 0.1, "z_loss": z_loss}
    (eager, eager_grad), (exact, exact_grad) = (
        truth(logits, labels, kind, scale=0.37, **options) for kind in (DTYPES[dtype], torch.float64)
    )
    for kind in kinds(harness, classes, dtype):
        losses, statistics, grad = run(harness, kind, logits, labels, smoothing=0.1, z_loss=z_loss, scale=0.37)
        name = f"{kind}, {classes} classes"
        assert_close_to_truth(losses, eager, exact, torch.float32, name=f"{name}: loss")
        assert_close_to_truth(grad, eager_grad, exact_grad, DTYPES[dtype], name=f"{name}: gradient")
        assert torch.equal(statistics[:, 0], logits.float().amax(1)), name
        sums = (logits.double() - statistics[:, :1]).exp().sum(1)
        torch.testing.assert_close(statistics[:, 1].double(), sums, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("stride", [30522, 30528, 30523])
def test_rows_may_start_anywhere_in_16_bytes(harness: ctypes.CDLL, stride: int, dtype: str) -> None:
    kind = "x" if dtype == "f" else "l"
    for offset in range(4 if dtype == "f" else 8):
        logits, labels = make(2, 30522, dtype, offset=offset, stride=stride)
        plain = run(harness, "u", logits, labels)
        for got, want in zip(run(harness, kind, logits, labels), plain, strict=True):
            rtol = 1e-2 if got.shape == logits.shape else 1e-5
            assert torch.allclose(got.double(), want.double(), rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("kind", [*HELD, "t", "u"])
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_gradient_may_take_the_place_of_the_logits(harness: ctypes.CDLL, dtype: str, kind: str) -> None:
    logits, labels = make(3, 301, dtype, offset=2)
    apart = run(harness, kind, logits, labels)
    for got, want in zip(run(harness, kind, logits, labels, in_place=True), apart, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_single_elements_serve_a_gradient_that_lies_otherwise(harness: ctypes.CDLL, dtype: str) -> None:
    logits, labels = make(3, 301, dtype)
    want, got = (run(harness, "u", logits, labels, grad_offset=offset) for offset in (0, 1))
    assert torch.equal(got[2], want[2])


@pytest.mark.parametrize("kind", [*HELD, "t", "u"])
def test_extreme_logits(harness: ctypes.CDLL, kind: str) -> None:
    """-inf has no probability, equal logits share it, large ones do not overflow; NaN and a row of -inf show."""
    rows = torch.randn(7, 200)
    rows[0, :150] = -INF
    rows[1] = 5.0
    rows[2] = 3e38
    rows[3, 7] = 1e4
    rows[4] = -INF
    rows[5, 111] = float("nan")
    rows[6, 3] = -INF
    labels = torch.tensor([160, 0, 9, 7, 1, 5, 3])
    losses, _, grad = run(harness, kind, rows, labels)
    want, want_grad = truth(rows, labels, torch.float32)
    torch.testing.assert_close(losses, want, equal_nan=True, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad[:4], want_grad[:4], rtol=1e-5, atol=1e-7)
    assert losses[4:6].isnan().all() and losses[6] == INF
    assert grad[4].isnan().all() and grad[5].isnan().all()
    torch.testing.assert_close(grad[6], want_grad[6], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", [*HELD, "t", "u"])
def test_a_row_without_smoothing_may_hold_many_minus_infinities(harness: ctypes.CDLL, kind: str) -> None:
    """All of some lanes' elements, and all before the first finite one: nothing is NaN."""
    rows = torch.full((1, 400), -INF)
    rows[0, 399], rows[0, 398] = 1.0, 0.0
    losses, statistics, grad = run(harness, kind, rows, torch.tensor([399]))
    assert losses.item() == pytest.approx(0.313262, rel=1e-5)
    assert statistics[0].tolist() == pytest.approx([1.0, 1.367879], rel=1e-5)
    assert (grad[0, :398] == 0).all()
    assert grad[0, 398:].tolist() == pytest.approx([0.268941, -0.268941], rel=1e-5)


def test_float16_gradients_may_be_scaled_beyond_its_smallest_numbers(harness: ctypes.CDLL) -> None:
    logits = torch.zeros(1, 30522, dtype=torch.float16)
    logits[0, 1:] = 1.0
    _, _, grad = run(harness, "l", logits, torch.tensor([0]), scale=256.0)
    exact = truth(logits, torch.tensor([0]), torch.float64)[1] * 256
    torch.testing.assert_close(grad.double(), exact, rtol=2.0**-11, atol=2.0**-25)
