"""The arithmetic of the CUDA optimizer, run on the host by harness.cpp, against the reference in float64."""

import ctypes
import math

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast.reference_optim import AdamRule, AdamTensors, update_tensor

DTYPES = {"f": torch.float32, "h": torch.float16, "b": torch.bfloat16}
CHUNK, THREADS = 16384, 256


def pointer(x):
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


def one_of(function, *arguments):
    function.restype = ctypes.c_float
    return function(*arguments)


def run(harness, dtypes, t, rule, factor=1.0, aligned=True):
    settings = (ctypes.c_double * 6)(*rule.betas, rule.eps, rule.weight_decay, *rule.trust_bounds)
    flags = (ctypes.c_int * 4)(rule.bias_correction, rule.decoupled, rule.adapt, aligned)
    harness.harness_optimizer(
        dtypes.encode(),
        *(pointer(x) for x in (t.grad, t.param, t.master, t.exp_avg, t.exp_avg_sq)),
        ctypes.c_int64(t.param.numel()),
        settings,
        flags,
        *(ctypes.c_float(x) for x in (t.step.item(), factor, rule.lr)),
        ctypes.c_int(THREADS),
    )


def make(dtypes, numel, master=False):
    param = (torch.randn(numel) * 0.1).to(DTYPES[dtypes[0]])
    return AdamTensors(
        param,
        torch.randn(numel).to(param.dtype),
        (torch.randn(numel) * 0.1).to(DTYPES[dtypes[1]]),
        torch.rand(numel) * 0.01,
        torch.tensor(7.0),
        param.float() + torch.randn(numel) * 1e-5 if master else None,
    )


def copied(t, dtype=None):
    tensors = (t.param, t.grad, t.exp_avg, t.exp_avg_sq)
    master = None if t.master is None else t.master.to(dtype or t.master.dtype, copy=True)
    return AdamTensors(*(x.to(dtype or x.dtype, copy=True) for x in tensors), t.step.clone(), master)


RULES = {
    "lamb": AdamRule(0.02, weight_decay=0.01, adapt=True),
    "lamb, bounds, no correction": AdamRule(
        0.02, weight_decay=0.01, adapt=True, bias_correction=False, trust_bounds=(0.2, 0.5)
    ),
    "lamb, l2": AdamRule(0.02, weight_decay=0.3, adapt=True, decoupled=False),
    "adamw": AdamRule(0.02, weight_decay=0.3),
    "google": AdamRule(0.02, weight_decay=0.3, bias_correction=False, betas=(0.8, 0.99)),
    "no momentum": AdamRule(0.02, betas=(0.0, 0.0), eps=1e-3),
}


@pytest.mark.parametrize("numel", [1, 5, 1027, 3 * CHUNK + 6])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtypes", ["ff", "fb", "hf", "bf", "bb"])
def test_a_step_agrees_with_the_reference_in_float64(harness, dtypes, name, numel):
    rule = RULES[name]
    for master in (False,) if dtypes[0] == "f" else (False, True):
        got = make(dtypes, numel, master)
        eager, exact = copied(got), copied(got, torch.float64)
        run(harness, dtypes, got, rule, 0.5)
        for expected in (eager, exact):
            update_tensor(rule, expected, torch.tensor(0.5))
        for field in ("exp_avg", "exp_avg_sq", "master", "param"):
            x, *others = (getattr(of, field) for of in (got, eager, exact))
            if x is not None:
                assert_close_to_truth(x, *others, x.dtype, name=field)
        if master:
            assert torch.equal(got.param, got.master.to(got.param.dtype))


@pytest.mark.parametrize("dtypes", ["ff", "bb"])
def test_vectors_and_single_elements_give_the_same(harness, dtypes):
    first = make(dtypes, CHUNK + 3)
    second = copied(first)
    for t, aligned in ((first, True), (second, False)):
        run(harness, dtypes, t, RULES["adamw"], aligned=aligned)
    for x, y in zip(first.written(), second.written(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("numel", [1, 2, 4, 1023, 1024, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1029])
def test_every_element_is_visited_once(harness, numel, aligned):
    values, visits = torch.randn(numel), torch.zeros(numel, dtype=torch.int32)
    arguments = (pointer(values), ctypes.c_int64(numel), ctypes.c_int(THREADS), ctypes.c_bool(aligned), pointer(visits))
    total = one_of(harness.harness_visits, *arguments)
    assert (visits == 1).all()
    assert total == pytest.approx(values.double().square().sum().item(), rel=1e-4)


@pytest.mark.parametrize("beta1,beta2", [(0.9, 0.999), (0.0, 0.5), (0.95, 0.99999)])
@pytest.mark.parametrize("step", [1, 2, 10, 1000, 1_000_000])
def test_bias_corrections_agree_with_float64(harness, beta1, beta2, step):
    out = (ctypes.c_float * 2)()
    harness.harness_bias_correction(ctypes.c_double(beta1), ctypes.c_double(beta2), ctypes.c_float(step), out)
    for got, beta in zip(out, (beta1, beta2), strict=True):
        assert got == pytest.approx(1 / (1 - beta**step), rel=1e-6)


def test_the_trust_ratio_where_a_norm_says_nothing(harness):
    def ratio(weight, update, low=0.0, high=math.inf):
        numbers = (ctypes.c_float(weight), ctypes.c_float(update), ctypes.c_double(low), ctypes.c_double(high))
        return one_of(harness.harness_trust_ratio, *numbers)

    assert ratio(9, 4) == 1.5
    assert ratio(9, 4, 0, 1.25) == 1.25
    assert ratio(4, 9, 0.75, 1) == 0.75
    for weight, update in ((0, 4), (9, 0), (math.nan, 4), (9, math.nan)):
        assert ratio(weight, update, 2.0, 3.0) == 1


def test_clipping_is_that_of_clip_grad_norm(harness):
    for norm in (0.0, 0.3, 1.0, 5.0, math.inf, math.nan):
        leaf = torch.nn.Parameter(torch.zeros(1))
        leaf.grad = torch.ones(1)
        torch.nn.utils.clip_grads_with_norm_(leaf, 1.0, torch.tensor(norm))
        got = one_of(harness.harness_clip_factor, ctypes.c_float(norm), ctypes.c_float(1.0))
        assert got == leaf.grad.item() or (math.isnan(got) and math.isnan(norm)), norm
