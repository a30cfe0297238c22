"""LAMB and AdamW on a GPU: the kernel against the reference over lists of tensors; graphs, scalers and peers."""

import copy
import math

import pytest
import torch
from numerics import assert_close_to_truth
from on_gpu import DEVICE, make_model, needs_memory, packed
from optimizer_cases import CHUNK, DTYPES, RULES, check, copied, ragged, tensors_of
from torch import nn

from bert_fast import backend, reference_optim, use_backend
from bert_fast.ops import lamb
from bert_fast.reference_optim import AdamRule, AdamTensors
from bert_fast.training import AdamW, Lamb, linear_schedule, parameter_groups

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _kernel():
    """Where the kernel cannot run, the test must fail and not pass on the reference."""
    yield


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", RULES)
def test_a_step_holds_the_contract(name, kind):
    sizes = [1, 0, 3, 4, 1023, 1024, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 6, 0]
    check(tensors_of(sizes, kind), [RULES[name]], max_grad_norm=1.0)


@pytest.mark.parametrize("count", [1, 55, 56, 57, 113, 400])
def test_lists_of_any_length_and_many_groups(count):
    check(tensors_of(ragged(count)), list(RULES.values())[: min(count, 5)], max_grad_norm=10.0)


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("kind", DTYPES)
def test_views_that_are_not_aligned(kind, shift):
    check(tensors_of([5, 4099, CHUNK + 5], kind, shift), [RULES["lamb"], RULES["adamw"]])


def test_dtypes_mixed_in_one_list():
    mixed = [t for i, kind in enumerate(DTYPES) for t in tensors_of([700, 33, CHUNK + 1], kind, seed=i)]
    check(mixed, [RULES["lamb"], RULES["google"]], max_grad_norm=1.0, grad_scale=torch.tensor(8.0, device=DEVICE))


def test_lists_without_elements():
    check(tensors_of([0, 0]), [RULES["lamb"]], max_grad_norm=1.0)


def test_a_tensor_of_over_two_to_the_31_elements():
    needs_memory(30)
    numel = 2**31 + 5
    t = AdamTensors(
        torch.full((numel,), 1.0, dtype=torch.bfloat16, device=DEVICE),
        torch.full((numel,), 1.0, dtype=torch.bfloat16, device=DEVICE),
        torch.zeros(numel, dtype=torch.bfloat16, device=DEVICE),
        torch.zeros(numel, device=DEVICE),
        torch.zeros((), device=DEVICE),
    )
    lamb.adam_step([(AdamRule(0.5, adapt=True), [t])])
    for part in (t.param[:9], t.param[-9:]):
        torch.testing.assert_close(part.float(), torch.full((9,), 0.5, device=DEVICE), rtol=1e-2, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_what_clip_grad_norm_does(bad):
    found = tensors_of([700, 33])
    found[0].grad[5] = bad
    expected = copied(found)
    lamb.adam_step([(RULES["adamw"], found)], max_grad_norm=1.0)
    reference_optim.adam_step([(RULES["adamw"], expected)], max_grad_norm=1.0)
    for t, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(t.param, plain.param, equal_nan=True)


@pytest.mark.parametrize("name", ["lamb", "adamw"])
def test_found_inf_leaves_everything(name):
    found = tensors_of([700, 33])
    before = copied(found)
    options = {"max_grad_norm": 1.0, "grad_scale": torch.ones(1, device=DEVICE)}
    lamb.adam_step([(RULES[name], found)], found_inf=torch.ones(1, device=DEVICE), **options)
    for t, old in zip(found, before, strict=True):
        assert all(torch.equal(x, y) for x, y in zip((*t.written(), t.step), (*old.written(), old.step), strict=True))
    lamb.adam_step([(RULES[name], found)], found_inf=torch.zeros(1, device=DEVICE), **options)
    assert all(t.step == 4 for t in found)


def test_results_are_the_same_on_every_run():
    first = tensors_of([31 * CHUNK + 7, 1000, 5])
    second = copied(first)
    for tensors in (first, second):
        lamb.adam_step([(RULES["lamb"], tensors)], max_grad_norm=1.0)
    for t, other in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(t.written(), other.written(), strict=True))


def test_version_counters_tell_that_weights_changed():
    (t,) = tensors_of([5], "bfloat16, master")
    before = [x._version for x in t.written()]
    lamb.adam_step([(RULES["lamb"], [t])])
    assert all(x._version > old for x, old in zip(t.written(), before, strict=True))


def test_the_host_never_waits():
    params = [nn.Parameter(torch.randn(300, device=DEVICE)) for _ in range(5)]
    optimizer = Lamb(params, torch.tensor(0.01, device=DEVICE), max_grad_norm=1.0)
    for warm in (True, False):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.grad_scale, optimizer.found_inf = torch.ones((2, 1), device=DEVICE)
        optimizer.found_inf.zero_()
        torch.cuda.set_sync_debug_mode("default" if warm else "error")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert backend.decisions()["lamb"][0] == "cuda"


SHAPES = [(40, 30), (64,), (3, 5), (), (300, 200)]


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(9)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE, dtype)) for shape in SHAPES]


def give_gradients(params, seed):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, device=DEVICE).to(p.dtype)


@pytest.mark.parametrize("kind", [Lamb, AdamW])
def test_a_thousand_steps_follow_the_reference(kind):
    ours, plain, exact = parameters(), parameters(), parameters(torch.float64)
    optimizers = [kind(params, 1e-3, max_grad_norm=1.0) for params in (ours, plain, exact)]
    for i in range(1000):
        give_gradients(ours, i)
        for p, *others in zip(ours, plain, exact, strict=True):
            for q in others:
                q.grad = p.grad.to(q.dtype, copy=True)
        for optimizer, name in zip(optimizers, ("cuda", "reference", "reference"), strict=True):
            with use_backend(name):
                optimizer.step()
    for p, eager, truth in zip(ours, plain, exact, strict=True):
        assert_close_to_truth(p, eager, truth.detach(), torch.float32)


@pytest.mark.parametrize("peer", ["foreach", "fused"])
def test_adamw_follows_pytorchs(peer):
    ours, theirs = parameters(), parameters()
    optimizer, other = AdamW(ours, 1e-3), torch.optim.AdamW(theirs, 1e-3, **{peer: True})
    for i in range(100):
        for params, stepping in ((ours, optimizer), (theirs, other)):
            give_gradients(params, i)
            stepping.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Lamb, AdamW])
def test_a_captured_step_reads_the_learning_rate_and_counts_on(kind):
    ours, plain = parameters(torch.bfloat16), parameters(torch.bfloat16)
    lr = torch.tensor(0.02, device=DEVICE)
    optimizer = kind(ours, lr, capturable=True, max_grad_norm=1.0)
    expected = kind(plain, 0.02, max_grad_norm=1.0)
    for params in (ours, plain):
        give_gradients(params, 0)
    expected.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for i in range(1, 6):
        lr.fill_(0.02 / i)
        expected.param_groups[0]["lr"] = 0.02 / i
        give_gradients(plain, i)
        for p, q in zip(ours, plain, strict=True):
            p.grad.copy_(q.grad)
        graph.replay()
        expected.step()
    assert all(s["step"] == 6 for s in optimizer.state.values())
    for p, q in zip(ours, plain, strict=True):
        assert torch.equal(p, q)


def test_a_capture_that_would_go_wrong_is_refused():
    params = parameters()
    give_gradients(params, 0)
    fixed, fresh = Lamb(params, 0.02), Lamb(params, 0.02, capturable=True)
    fixed.step()
    for optimizer, message in ((fixed, "only with capturable=True"), (fresh, "take a step before the capture")):
        with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
            optimizer.step()


def test_a_bert_trains_and_its_derived_weights_follow():
    model, batch = make_model(dtype=torch.float32), packed()
    with torch.no_grad():
        before = model(batch).last_hidden_state
    optimizer = Lamb(parameter_groups(model, 0.01), 0.05, max_grad_norm=1.0)
    schedule = linear_schedule(optimizer, 0, 100)
    losses = []
    for _ in range(10):
        out = model(batch)
        loss = (out.last_hidden_state.float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        with torch.no_grad():
            found, expected = (m(batch).last_hidden_state for m in (model, copy.deepcopy(model)))
        assert torch.equal(found, expected)
    assert losses[-1] < losses[0]
    assert not torch.equal(found, before)
    assert backend.decisions()["lamb"][0] == "cuda"


def test_grad_scaler_skips_what_overflowed():
    params = parameters()
    optimizer, scaler = Lamb(params, 0.01), torch.amp.GradScaler("cuda", init_scale=1024.0)
    for i in range(3):
        scaler.scale(torch.ones((), device=DEVICE))
        give_gradients(params, i)
        if i == 1:
            params[0].grad[3, 4] = math.inf
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 512
    assert all(s["step"] == 2 for s in optimizer.state.values())


def test_what_the_kernel_cannot_take_goes_to_the_reference_and_says_why():
    p = nn.Parameter(torch.randn(6, 4, device=DEVICE).T)
    p.grad = torch.randn_like(p)
    with use_backend("auto"):
        Lamb([p], 0.01).step()
    assert backend.decisions()["lamb"] == ("reference", {"cuda": ["a tensor is not contiguous"]})


def test_state_moves_between_cpu_and_gpu():
    ours = parameters()
    optimizer = AdamW(ours, 0.01)
    give_gradients(ours, 0)
    optimizer.step()
    host = [nn.Parameter(p.detach().cpu()) for p in ours]
    there = AdamW(host, 0.01)
    there.load_state_dict(optimizer.state_dict())
    assert {x.device.type for s in there.state.values() for x in s.values()} == {"cpu"}
    back = AdamW(ours, 0.01)
    back.load_state_dict(there.state_dict())
    assert {x.device.type for s in back.state.values() for x in s.values()} == {"cuda"}
    give_gradients(ours, 1)
    for p, q in zip(host, ours, strict=True):
        p.grad = q.grad.cpu()
    with use_backend("auto"):
        there.step()
    back.step()
    for p, q in zip(host, ours, strict=True):
        torch.testing.assert_close(p, q.detach().cpu(), rtol=1e-5, atol=1e-6)
