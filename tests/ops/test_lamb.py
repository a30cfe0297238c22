"""The door of LAMB and Adam: which path takes a list of tensors, and that every path holds the contract."""

import math
from dataclasses import replace

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import backend, reference_optim, use_backend
from bert_fast.ops import lamb, lamb_cpu
from bert_fast.reference_optim import AdamRule, AdamTensors

RULES = {
    "lamb": AdamRule(0.02, weight_decay=0.01, adapt=True),
    "lamb, clamped, uncorrected": AdamRule(
        0.02, weight_decay=0.1, adapt=True, bias_correction=False, trust_bounds=(0.1, 0.3)
    ),
    "lamb, no decay": AdamRule(0.02, adapt=True),
    "lamb, l2": AdamRule(0.02, weight_decay=0.1, adapt=True, decoupled=False),
    "adamw": AdamRule(0.02, weight_decay=0.1, eps=1e-8),
    "google": AdamRule(0.02, weight_decay=0.1, bias_correction=False),
    "tensor lr": AdamRule(torch.tensor([0.02]), weight_decay=0.1, adapt=True),
}
SHAPES = [(129,), (33, 65), (), (0, 3), (1,), (7, 11, 3)]


def tensors_of(dtype=torch.float32, shapes=SHAPES):
    made = []
    for shape in shapes:
        state = (torch.zeros(shape), torch.zeros(shape), torch.zeros(()))
        made.append(AdamTensors(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), *state))
    return made


def copied(tensors, dtype=None):
    def one(x):
        return x.detach().to(dtype or x.dtype, copy=True)

    return [AdamTensors(*(one(x) for x in (t.param, t.grad, t.exp_avg, t.exp_avg_sq)), t.step.clone()) for t in tensors]


@pytest.mark.parametrize("limit", [None, 1.0, 1e9])
@pytest.mark.parametrize("name", RULES)
def test_pytorchs_fused_adam_holds_the_contract(name, limit):
    rule = RULES[name]
    found = tensors_of()
    eager, exact = copied(found), copied(found, torch.float64)
    options = {"max_grad_norm": limit, "grad_scale": torch.tensor(2.0)}
    for _ in range(3):
        norm = lamb.adam_step([(rule, found)], **options)
        for given in (eager, exact):
            expected = reference_optim.adam_step([(rule, given)], **options)
        assert (norm is None) == (limit is None)
        if limit is not None:
            torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)
    assert lamb_cpu.runs_fused(rule, found[0]) == (name != "lamb, l2")
    for t, plain, truth in zip(found, eager, exact, strict=True):
        for x, y, z in zip(t.written(), plain.written(), truth.written(), strict=True):
            assert_close_to_truth(x, y, z, torch.float32)
        assert t.step.item() == 3


def test_gradients_are_left_as_they_are():
    found = tensors_of()
    before = [t.grad.clone() for t in found]
    lamb.adam_step([(RULES["adamw"], found)], max_grad_norm=0.1, grad_scale=torch.tensor(4.0))
    assert all(torch.equal(t.grad, g) for t, g in zip(found, before, strict=True))


def test_what_the_fused_adam_cannot_take_goes_to_the_reference():
    rule = RULES["adamw"]
    plain = tensors_of(shapes=[(4, 6)])[0]
    assert lamb_cpu.runs_fused(rule, plain)
    odd = {
        "transposed": replace(plain, param=torch.randn(6, 4).T),
        "double": copied([plain], torch.float64)[0],
        "half": replace(plain, param=plain.param.half(), grad=plain.grad.half()),
        "master": replace(plain, master=plain.param.clone()),
        "moment": replace(plain, exp_avg=plain.exp_avg.bfloat16()),
    }
    for name, t in odd.items():
        assert not lamb_cpu.runs_fused(rule, t), name
        expected = copied([t])[0] if t.master is None else replace(copied([t])[0], master=t.master.clone())
        lamb.adam_step([(rule, [t])])
        reference_optim.adam_step([(rule, [expected])])
        assert all(torch.equal(x, y) for x, y in zip(t.written(), expected.written(), strict=True)), name


def test_version_counters_tell_that_weights_changed():
    """Derived weights and autograd go by them, and PyTorch's fused kernels leave them as they are."""
    t = tensors_of(shapes=[(5,)])[0]
    before = [x._version for x in t.written()]
    lamb.adam_step([(RULES["lamb"], [t])])
    assert all(x._version > old for x, old in zip(t.written(), before, strict=True))


def test_nothing_to_do():
    assert lamb.adam_step([]) is None
    assert lamb.adam_step([(RULES["lamb"], [])], max_grad_norm=1.0) is None


def test_found_inf_leaves_everything():
    found = tensors_of()
    before = copied(found)
    lamb.adam_step([(RULES["lamb"], found)], found_inf=torch.ones(()))
    for t, old in zip(found, before, strict=True):
        assert t.step.item() == 0
        assert all(torch.equal(x, y) for x, y in zip(t.written(), old.written(), strict=True))


def test_asked_for_by_name_the_kernel_says_what_is_against_it():
    with use_backend("cuda"), pytest.raises(backend.BackendError, match="lamb cannot run.*on cpu"):
        lamb.adam_step([(RULES["lamb"], tensors_of())])


def test_asked_for_the_reference_it_takes_the_reference(monkeypatch):
    monkeypatch.setattr(lamb_cpu, "_fused", None)
    with use_backend("reference"):
        lamb.adam_step([(RULES["lamb"], tensors_of())])
    assert backend.decisions()["lamb"][0] == "reference"


def test_every_reason_against_the_kernel_is_named():
    device = torch.device("cuda", 0)
    t = tensors_of(shapes=[(4, 6)])[0]

    def reasons(**changes):
        return lamb._against([(RULES["lamb"], [replace(t, **changes)])], device)

    usual = reasons()
    assert usual == ("the tensors are on several devices",)
    for changes, said in (
        ({"param": torch.randn(6, 4).T}, "a tensor is not contiguous"),
        ({"param": t.param.double()}, "parameter and gradient are torch.float64 and torch.float32"),
        ({"grad": t.grad.half()}, "parameter and gradient are torch.float32 and torch.float16"),
        ({"exp_avg": t.exp_avg.half()}, "exp_avg is torch.float16, not float32 or bfloat16"),
        ({"exp_avg_sq": t.exp_avg_sq.bfloat16()}, "exp_avg_sq, step or master is not float32"),
        ({"master": t.param.double()}, "exp_avg_sq, step or master is not float32"),
        ({"grad": torch.nn.Buffer(t.grad)}, None),
    ):
        found = set(reasons(**changes)) - set(usual)
        assert found == ({said} if said else found), changes.keys()
    assert len(reasons(param=t.param.double(), exp_avg=t.exp_avg.half())) == 3


def test_a_step_compiles_into_one_graph():
    found = tensors_of(shapes=[(5, 3), (4,)])
    expected = copied(found)

    @torch.compile(backend="eager", fullgraph=True)
    def step(*tensors):
        lamb.adam_step([(RULES["google"], [AdamTensors(*tensors)])])

    for t in found:
        step(t.param, t.grad, t.exp_avg, t.exp_avg_sq, t.step)
    reference_optim.adam_step([(RULES["google"], expected)])
    for t, old in zip(found, expected, strict=True):
        for x, y in zip(t.written(), old.written(), strict=True):
            torch.testing.assert_close(x, y)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_on_the_fused_path(bad):
    found = tensors_of(shapes=[(5,), (3,)])
    found[0].grad[1] = bad
    expected = copied(found)
    lamb.adam_step([(RULES["adamw"], found)], max_grad_norm=1.0)
    reference_optim.adam_step([(RULES["adamw"], expected)], max_grad_norm=1.0)
    for t, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(t.param, plain.param, equal_nan=True)
