"""cross_entropy: numbers, upstream gradients of every kind, what it refuses; on a GPU the extension's kernel.

On CPU the kernel's ops are called past the door: PyTorch's ops stand in for the kernel, schemas and gradients are real.
"""

import importlib

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import backend, ops, reference, use_backend
from bert_fast.ops.cross_entropy import LossRule, fused_cross_entropy, row_losses

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HALVES_AND_FLOAT = [torch.float32, torch.bfloat16, torch.float16]
OPTIONS = {"plain": {}, "smoothing": {"label_smoothing": 0.1}, "all": {"label_smoothing": 0.2, "z_loss": 1e-3}}


def inputs(rows=13, classes=301, dtype=torch.float32, device="cpu"):
    logits = (3 * torch.randn(rows, classes)).to(device, dtype)
    labels = torch.randint(classes, (rows,)).masked_fill(torch.arange(rows) % 4 == 1, -100)
    return logits, labels.to(device)


def kernel(logits, labels, ignore_index=-100, *, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """As the door calls it on a GPU."""
    rule = LossRule(ignore_index, label_smoothing, z_loss)
    return fused_cross_entropy(logits, labels, rule, reduction, logits.device.type == "cuda")


def traced(logits, labels, ignore_index=-100, *, label_smoothing=0.0, z_loss=0.0, reduction="mean"):
    """As the door calls it on a GPU while compiling."""
    losses, _ = row_losses(logits, labels, ignore_index, label_smoothing, z_loss)
    if reduction == "none":
        return losses
    return losses.sum() / ((labels != ignore_index).sum().clamp(min=1) if reduction == "mean" else 1)


def run(function, logits, labels, *, dtype=None, upstream=None, **options):
    leaf = logits.detach().to(dtype or logits.dtype).requires_grad_()
    loss = function(leaf, labels, **options)
    if upstream is None:
        upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(3))
    return loss.detach(), torch.autograd.grad(loss, leaf, torch.as_tensor(upstream).to(loss))[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [ops.cross_entropy, kernel, traced], ids=["door", "kernel", "traced"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
def test_it_holds_the_contract_whatever_the_upstream_gradient(dtype, case, reduction, function, device):
    logits, labels = inputs(dtype=dtype, device=device)
    options = {**OPTIONS[case], "reduction": reduction}
    got = run(function, logits, labels, **options)
    eager, truth = (
        run(reference.cross_entropy, logits, labels, dtype=kind, **options) for kind in (dtype, torch.float64)
    )
    assert got[0].dtype == torch.float32
    for name, *values in zip(("loss", "gradient"), got, eager, truth, strict=True):
        assert_close_to_truth(*values, dtype, name=name)
    assert (got[1][labels == -100] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("upstreams", [(1.0, 1.0), (1.0, -2.5), (0.0, 1.0), (3.0, 0.5)], ids=str)
def test_backward_twice_over_one_graph(upstreams, device):
    """The first pass may hand out the gradient that the forward pass made; the second must not find it spoilt."""
    logits, labels = inputs(device=device)
    leaf = logits.clone().requires_grad_()
    loss = kernel(leaf, labels)
    found = [torch.autograd.grad(loss, leaf, torch.tensor(u, device=device), retain_graph=True)[0] for u in upstreams]
    before = found[0].clone()
    found[0].fill_(float("nan"))  # it is the caller's now
    found.append(torch.autograd.grad(loss, leaf)[0])
    _, unit = run(reference.cross_entropy, logits, labels, upstream=1.0)
    for got, upstream in zip([before, *found[1:]], (*upstreams, 1.0), strict=True):
        torch.testing.assert_close(got, upstream * unit, rtol=1e-5, atol=1e-8)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, leaf)


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_scaler_reaches_float16_before_it_underflows(device):
    """Without a scale this gradient is 3e-9 everywhere, which float16 does not have; with one nothing is lost."""
    classes = 2**18
    logits = torch.zeros(1, classes, dtype=torch.float16, device=device)
    labels = torch.zeros(1, dtype=torch.long, device=device)
    _, plain = run(kernel, logits, labels, upstream=2.0**-10)
    assert (plain[:, 1:] == 0).all()
    leaf = logits.requires_grad_()
    loss = kernel(leaf, labels) * 2.0**-10  # as the mean over 1,024 such rows
    scaled = torch.autograd.grad(loss, leaf, torch.tensor(2.0**16, device=device))[0]
    assert ((scaled[:, 1:].double() * 2.0**12 - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
@pytest.mark.parametrize("layout", ["transposed", "wider_rows", "shifted", "one_row_repeated"])
def test_logits_of_any_strides(layout, dtype, device):
    logits, labels = inputs(dtype=dtype, device=device)
    if layout == "transposed":
        strided = logits.t().contiguous().t()
    elif layout == "one_row_repeated":
        strided = logits[:1].expand(13, 301)
    else:
        start = 1 if layout == "shifted" else 0
        strided = torch.cat([logits.new_zeros(13, start), logits, logits.new_full((13, 7), float("nan"))], 1)
        strided = strided[:, start : start + 301]
    for reduction in ("mean", "none"):
        got, want = (run(kernel, x, labels, reduction=reduction) for x in (strided, strided.contiguous()))
        for left, right in zip(got, want, strict=True):
            torch.testing.assert_close(left, right, rtol=2e-2 if dtype == torch.bfloat16 else 2e-3, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("function", [ops.cross_entropy, kernel, traced], ids=["door", "kernel", "traced"])
def test_nothing_but_ignored_rows_gives_0_whatever_they_hold(function, reduction, device):
    for rows in (0, 5):
        logits = torch.full((rows, 7), float("nan"), device=device)
        loss, grad = run(function, logits, torch.full((rows,), -100, device=device), reduction=reduction)
        if rows == 0 or function is not ops.cross_entropy or device == "cuda":
            assert (loss == 0).all()
            assert grad.shape == logits.shape and (grad == 0).all()


def test_what_does_not_fit_is_named():
    logits, labels = inputs()
    with pytest.raises(ValueError, match=r"reduction must be one of .* not 'max'"):
        ops.cross_entropy(logits, labels, reduction="max")
    with pytest.raises(ValueError, match="label_smoothing must be 0 to 1, not 1.5"):
        ops.cross_entropy(logits, labels, label_smoothing=1.5)
    with pytest.raises(ValueError, match=r"labels must have one entry per row, \[13\], not \[12\]"):
        ops.cross_entropy(logits, labels[:12])
    for bad in (301, -1, 2**40):
        labels[2] = bad
        with pytest.raises(IndexError, match=rf"labels hold {bad}, but there are 301 classes \(0 to 300\)"):
            ops.cross_entropy(logits, labels)


def test_a_changed_input_is_an_error_and_not_a_wrong_gradient():
    logits, labels = inputs()
    leaf = logits.clone().requires_grad_()
    hidden = leaf * 1
    loss = kernel(hidden, labels)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradients_none_is_made(monkeypatch):
    made = []
    module = importlib.import_module("bert_fast.ops.cross_entropy")  # a function of the package has its name
    monkeypatch.setattr(module, "gradient_like", made.append)
    logits, labels = inputs()
    with torch.no_grad():
        kernel(logits.requires_grad_(), labels)
    kernel(logits.detach(), labels)
    assert not made


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_and_compiled_fullgraph(device):
    logits, labels = inputs(device=device)
    arguments = (logits.requires_grad_(), labels, -100, 0.1, 1e-3)
    torch.library.opcheck(row_losses, arguments)
    losses, statistics = row_losses(*arguments)
    grads = (torch.randn_like(losses), logits.detach(), labels, statistics, -100, 0.1, 1e-3)
    name = torch.ops.bert_fast.cross_entropy_backward.default
    torch.library.opcheck(name, grads, test_utils=("test_schema", "test_faketensor"))
    compiled = torch.compile(traced, backend="aot_eager", fullgraph=True)
    for got, want in zip(run(compiled, logits, labels), run(traced, logits, labels), strict=True):
        torch.testing.assert_close(got, want)
    door = torch.compile(ops.cross_entropy, backend="aot_eager", fullgraph=True)
    for got, want in zip(run(door, logits, labels), run(ops.cross_entropy, logits, labels), strict=True):
        torch.testing.assert_close(got, want)


# The kernel on a GPU. Its arithmetic is judged on the host too: tests/csrc/test_shared_cross_entropy.py


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [1, 2, 7, 512, 1025, 8193, 30522, 30528, 50368, 65537, 250002])
@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
def test_every_width_on_the_kernel(dtype, classes):
    logits, labels = inputs(rows=9, classes=classes, dtype=dtype, device="cuda")
    got = run(ops.cross_entropy, logits, labels)
    assert backend.decisions()["cross_entropy"][0] == "cuda"
    eager, truth = (run(reference.cross_entropy, logits, labels, dtype=kind) for kind in (dtype, torch.float64))
    for name, *values in zip(("loss", "gradient"), got, eager, truth, strict=True):
        assert_close_to_truth(*values, dtype, name=name)


@pytest.mark.gpu
@pytest.mark.parametrize("upstream", [1.0, -2.0])
def test_every_one_of_many_rows_gets_its_upstream(upstream):
    for classes in (5, 1500):
        logits, labels = inputs(rows=20_000, classes=classes, device="cuda")
        got, want = (run(f, logits, labels, upstream=upstream) for f in (ops.cross_entropy, reference.cross_entropy))
        torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [301, 30522, 250002])
@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
def test_in_place_it_is_the_same_to_the_bit_and_on_every_run(dtype, classes):
    from bert_fast.ops.cross_entropy import write_rows

    logits, labels = inputs(rows=150, classes=classes, dtype=dtype, device="cuda")
    results = []
    for _ in range(3):
        copy, losses = logits.clone(), torch.empty(150, device="cuda")
        write_rows(copy, labels, LossRule(), on_kernel=True, losses=losses, grad=copy)
        results.append((losses, copy))
    apart, losses = torch.full_like(logits, float("nan")), torch.empty(150, device="cuda")
    write_rows(logits, labels, LossRule(), on_kernel=True, losses=losses, grad=apart)
    for found in results:
        assert torch.equal(found[0], losses) and torch.equal(found[1], apart)


@pytest.mark.gpu
@pytest.mark.parametrize("backend_name", ["auto", "reference"])
@pytest.mark.parametrize("bad", [-1, 301, 2**40])
def test_a_label_that_is_no_class_is_reported_where_the_host_waits_and_then_forgotten(bad, backend_name):
    logits, labels = inputs(device="cuda")
    labels[2] = bad
    mask = torch.ones(2, 3, dtype=torch.bool, device="cuda")
    with use_backend(backend_name):
        loss, grad = run(ops.cross_entropy, logits, labels, reduction="none")
        assert loss[2] == 0 and (grad[2] == 0).all() and torch.isfinite(grad).all()
        with pytest.raises(IndexError, match="labels of an earlier batch"):
            ops.unpad(mask)
        ops.unpad(mask)


@pytest.mark.gpu
def test_more_than_two_to_the_31_logits():
    from on_gpu import needs_memory

    needs_memory(14)
    rows, classes = 2**31 // 30522 + 7, 30522
    logits = torch.zeros(rows, classes, dtype=torch.bfloat16, device="cuda")
    logits[-1, 5] = 4.0
    loss, grad = run(kernel, logits, torch.full((rows,), 5, device="cuda"), reduction="none", upstream=torch.ones(rows))
    last = reference.cross_entropy(logits[-1:].double(), torch.tensor([5], device="cuda"), reduction="none")
    torch.testing.assert_close(loss[-1:].double(), last, rtol=1e-5, atol=1e-6)
    assert (grad[-1, 5].double() + 1 - (-last).exp()).abs().max() < 1e-2
    assert (grad[-1, :5] != 0).all() and (grad[0, 6:] != 0).all()


@pytest.mark.gpu
def test_it_does_not_make_the_host_wait():
    logits, labels = inputs(device="cuda")
    leaf = logits.requires_grad_()
    kernel(leaf, labels).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.cross_entropy(leaf, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
