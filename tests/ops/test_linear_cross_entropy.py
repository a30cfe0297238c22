"""linear_cross_entropy: the loss and gradients of the two ops it joins, and how much of the logits ever exists."""

import importlib
import threading

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close_to_truth

from bert_fast import backend, ops, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
R, H, V = 40, 24, 301
SEVERAL = 8 * 320 * 4  # bytes of 8 float32 rows, 16 of 16 bits: more than one chunk, the last one smaller
NAMES = ("hidden", "weight", "bias")


def inputs(dtype=torch.float32, device="cpu", ignored=True, bias=True):
    operands = {"hidden": torch.randn(R, H), "weight": torch.randn(V, H) / 4, "bias": torch.randn(V)}
    labels = torch.randint(V, (R,))
    if ignored:
        labels[::3] = -100
    given = {name: x.to(device, dtype) for name, x in operands.items() if bias or name != "bias"}
    return given, labels.to(device)


def ours(hidden, weight, bias=None, labels=None, **options):
    return ops.linear_cross_entropy(hidden, weight, bias, labels, **{"chunk_bytes": SEVERAL, **options})


def two_ops(hidden, weight, bias=None, labels=None, **options):
    return reference.cross_entropy(F.linear(hidden, weight, bias), labels, **options)


def run(function, given, labels, *, dtype=None, wanted=NAMES, upstream=None, **options):
    leaves = {n: x.detach().to(dtype or x.dtype).requires_grad_(n in wanted) for n, x in given.items()}
    loss = function(**leaves, labels=labels, **options)
    if upstream is None:
        upstream = torch.randn(loss.shape, generator=torch.Generator().manual_seed(3))
    grads = torch.autograd.grad(loss, [x for x in leaves.values() if x.requires_grad], upstream.to(loss))
    return {"loss": loss.detach()} | dict(zip([n for n, x in leaves.items() if x.requires_grad], grads, strict=True))


OPTIONS = {"plain": {}, "smoothing": {"label_smoothing": 0.1}, "all": {"label_smoothing": 0.1, "z_loss": 1e-3}}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("drop", [True, False], ids=["drop", "keep"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_holds_the_contract_with_every_gradient(dtype, case, reduction, drop, device):
    given, labels = inputs(dtype, device, bias=case != "plain")
    options = {**OPTIONS[case], "reduction": reduction}
    got = run(ours, given, labels, drop_ignored=drop, **options)
    eager, truth = (run(two_ops, given, labels, dtype=kind, **options) for kind in (dtype, torch.float64))
    assert got["loss"].dtype == torch.float32
    for name, value in got.items():
        assert value.dtype == (torch.float32 if name == "loss" else dtype)
        assert_close_to_truth(value, eager[name], truth[name], dtype, max(R, V), name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_many_chunks_do_not_wear_out_the_gradient_of_the_weight(dtype):
    """A sum of 40 rows' products rounded to 16 bits after each would be past the contract's bound."""
    given, labels = inputs(dtype, ignored=False)
    options = {"label_smoothing": 0.1}
    got = run(ours, given, labels, chunk_bytes=1, **options)
    eager, truth = (run(two_ops, given, labels, dtype=kind, **options) for kind in (dtype, torch.float64))
    for name, value in got.items():
        assert_close_to_truth(value, eager[name], truth[name], dtype, name=name)


def profiled(function):
    """The bytes that every event allocated, and how many products of matrices ran, inside of custom ops too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.events()
    products = sum(e.name in ("aten::mm", "aten::addmm", "aten::addmm_") for e in events)
    return [e.self_cpu_memory_usage for e in events], products


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_no_more_logits_exist_at_once_than_a_chunk(grad):
    rows, classes, hidden = 256, 4000, 4
    leaves = torch.randn(rows, hidden, requires_grad=grad), torch.randn(classes, hidden, requires_grad=grad)
    labels = torch.randint(classes, (rows,))
    budget = 16 * 4032 * 4

    def run_once(function):
        loss = function(*leaves, None, labels)
        return loss.backward() if grad else loss

    allocations, _ = profiled(lambda: run_once(lambda *x: ops.linear_cross_entropy(*x, chunk_bytes=budget)))
    large = [size for size in allocations if size > budget / 2]
    assert len(large) == 1 and large[0] <= budget
    allocations, _ = profiled(lambda: run_once(two_ops))
    assert max(allocations) >= rows * classes * 4, "the measure does not see what it should"


@pytest.mark.parametrize("wanted", [("hidden",), ("weight",), ("bias",), ("hidden", "bias"), NAMES], ids=str)
def test_what_is_frozen_costs_no_product(wanted):
    given, labels = inputs()
    found = {}
    _, products = profiled(lambda: found.update(run(ours, given, labels, wanted=wanted, chunk_bytes=2**20)))
    assert products == 1 + ("hidden" in wanted) + ("weight" in wanted)
    assert set(found) == {"loss", *wanted}
    want = run(two_ops, given, labels, wanted=wanted)
    for name, value in found.items():
        torch.testing.assert_close(value, want[name], rtol=1e-4, atol=1e-6)


def test_only_labelled_rows_are_multiplied():
    given, labels = inputs()
    given["hidden"][labels == -100] = float("nan")
    kept = {**given, "hidden": given["hidden"].nan_to_num()}
    got, want = (run(ours, x, labels) for x in (given, kept))
    assert torch.equal(got["weight"], want["weight"]) and torch.equal(got["loss"], want["loss"])
    assert (got["hidden"][labels == -100] == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, R])
def test_nothing_but_ignored_rows_gives_0_and_zero_gradients(rows, reduction):
    given, _ = inputs()
    given["hidden"] = given["hidden"][:rows]
    for name, value in run(ours, given, torch.full((rows,), -100), reduction=reduction).items():
        assert (value == 0).all(), name


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_may_be_used_twice(reduction):
    given, labels = inputs()
    leaves = [x.requires_grad_() for x in given.values()]
    loss = ours(*leaves, labels, reduction=reduction).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, torch.tensor(-3.0))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(other, -3 * one)


def test_a_weight_that_is_used_elsewhere_too_gets_both_gradients():
    given, labels = inputs()
    results = []
    for function in (ours, two_ops):
        weight = given["weight"].clone().requires_grad_()
        hidden = F.embedding(torch.arange(R), weight)
        function(hidden, weight, given["bias"], labels).backward()
        results.append(weight.grad)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_under_autocast_it_computes_as_linear_does(device):
    given, labels = inputs(device=device)
    with torch.autocast(device, torch.bfloat16):
        got, eager = (run(function, given, labels) for function in (ours, two_ops))
    truth = run(two_ops, {n: x.bfloat16() for n, x in given.items()}, labels, dtype=torch.float64)
    for name, value in got.items():
        assert value.dtype == torch.float32
        assert_close_to_truth(value, eager[name], truth[name], torch.bfloat16, name=name)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck_and_compiled_fullgraph(reduction):
    given, labels = inputs()
    leaves = [x.requires_grad_() for x in given.values()]
    arguments = (*leaves, labels, -100, 0.1, 1e-3, reduction, True, SEVERAL, False, True, True, True)
    torch.library.opcheck(torch.ops.bert_fast.linear_cross_entropy.default, arguments)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    got, want = (run(function, given, labels, reduction=reduction) for function in (compiled, ours))
    for name, value in got.items():
        torch.testing.assert_close(value, want[name])


def test_what_does_not_fit_is_named():
    given, labels = inputs()
    hidden, weight, bias = given.values()
    with pytest.raises(ValueError, match=r"hidden must be \[R, H\] and .* not \[40, 24\] and \[24, 301\]"):
        ops.linear_cross_entropy(hidden, weight.t(), bias, labels)
    with pytest.raises(ValueError, match=r"bias must be \[V\] = \[301\], not \[300\]"):
        ops.linear_cross_entropy(hidden, weight, bias[:300], labels)
    with pytest.raises(ValueError, match="must have one dtype: .*float64"):
        ops.linear_cross_entropy(hidden.double(), weight, bias, labels)
    with pytest.raises(IndexError, match="labels hold 301, but there are 301 classes"):
        ops.linear_cross_entropy(hidden, weight, bias, labels.masked_fill(labels == -100, 301))


def test_inside_torch_func_it_is_the_loss_of_its_logits():
    hidden, weight, labels = torch.randn(7, 5), torch.randn(11, 5), torch.tensor([0, 3, -100, 10, 2, -100, 5])
    got = torch.func.grad(lambda w: ops.linear_cross_entropy(hidden, w, None, labels))(weight)
    want = torch.func.grad(lambda w: torch.nn.functional.cross_entropy(hidden @ w.T, labels))(weight)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_the_backward_pass_is_on_the_backend_of_the_forward(name, monkeypatch):
    """It runs in another thread, where nobody has asked for a backend."""
    module, seen = importlib.import_module("bert_fast.ops.linear_cross_entropy"), []
    plain = module.write_rows

    def recorded(*arguments, on_kernel, **others):
        seen.append((on_kernel, threading.get_ident()))
        plain(*arguments, on_kernel=False, **others)

    monkeypatch.setattr(module, "write_rows", recorded)
    monkeypatch.setattr(backend, "cuda_reasons", lambda device: ())
    given, labels = inputs()
    leaves = [x.requires_grad_() for x in given.values()]
    with backend.use_backend(name):
        loss = ours(*leaves, labels, reduction="none").sum()
    forward = len(seen)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert len(seen) == 2 * forward > 0
    assert len({ident for _, ident in seen}) == 2
    assert {on_kernel for on_kernel, _ in seen} == {name == "auto"}


def test_where_the_op_is_not_registered_it_is_the_loss_of_the_logits(monkeypatch):
    """Such as on MPS: PyTorch has no way to run another device's op there."""
    module = importlib.import_module("bert_fast.ops.linear_cross_entropy")
    given, labels = inputs()
    want = run(ours, given, labels)
    monkeypatch.setattr(module, "_DEVICES", ())
    monkeypatch.setattr(module, "_linear_cross_entropy", None)
    for key, value in run(ours, given, labels).items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_in_a_cuda_graph_no_row_is_taken_out(reduction, monkeypatch):
    """Their number is a value, for which the host would have to wait."""
    module = importlib.import_module("bert_fast.ops.linear_cross_entropy")
    given, labels = inputs()
    want = run(ours, given, labels, reduction=reduction)
    monkeypatch.setattr(module, "capturing", lambda device: True)
    monkeypatch.setattr(module, "labelled_rows", None)
    for key, value in run(ours, given, labels, reduction=reduction).items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-6)
