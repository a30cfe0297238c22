"""The reference of LAMB and Adam against their authors' pseudo-code in float64, and against PyTorch's clipping."""

import math

import optimizer_loops as loops
import pytest
import torch

from bert_fast.reference_optim import AdamRule, AdamTensors, adam_step

SHAPES = [(7, 5), (3,), (), (0, 4), (2, 3, 4)]
STEPS = 4


def tensors_of(shapes=SHAPES, dtype=torch.float64, moment=None, master=False):
    made = []
    for shape in shapes:
        param = torch.randn(shape, dtype=torch.float64).to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        state = (torch.zeros(shape, dtype=moment or wide), torch.zeros(shape, dtype=wide), torch.zeros(()))
        made.append(AdamTensors(param, torch.empty_like(param), *state, param.to(wide) if master else None))
    return made


def draw(tensors):
    for t in tensors:
        t.grad.copy_(torch.randn(t.grad.shape, dtype=torch.float64))


# The reference's rule, and the loop that says the same in the authors' words.
RULES = {
    "lamb": ({"weight_decay": 0.01, "adapt": True}, loops.lamb, {}),
    "lamb without bias correction": (
        {"weight_decay": 0.01, "adapt": True, "bias_correction": False}, loops.lamb, {"correct": False},
    ),
    "lamb with l2": ({"weight_decay": 0.01, "adapt": True, "decoupled": False}, loops.lamb_l2, {}),
    "lamb without decay": ({"adapt": True}, loops.lamb, {"decay": 0.0}),
    "lamb, bounds": (
        {"weight_decay": 0.1, "adapt": True, "trust_bounds": (0.9, 1.1)},
        loops.lamb, {"decay": 0.1, "bounds": (0.9, 1.1)},
    ),
    "adamw": ({"weight_decay": 0.01}, loops.adamw, {"eps": 1e-6}),
    "google's adam": ({"weight_decay": 0.01, "bias_correction": False}, loops.google_adam, {}),
    "betas and eps": (
        {"betas": (0.0, 0.5), "eps": 0.1}, loops.adamw, {"betas": (0.0, 0.5), "eps": 0.1, "decay": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_it_takes_the_steps_of_the_pseudo_code(name):
    options, loop, settings = RULES[name]
    tensors = tensors_of()
    expected = [t.param.clone() for t in tensors]
    states = [loops.zeros(w) for w in expected]
    for _ in range(STEPS):
        draw(tensors)
        adam_step([(AdamRule(0.02, **options), tensors)])
        expected = [loop(w, t.grad, s, lr=0.02, **settings) for w, t, s in zip(expected, tensors, states, strict=True)]
    for t, w, s in zip(tensors, expected, states, strict=True):
        torch.testing.assert_close(t.param, w, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(t.exp_avg, s["m"], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(t.exp_avg_sq, s["v"], rtol=1e-12, atol=1e-14)
        assert t.step.item() == STEPS


def test_the_bounds_of_the_ratio_are_met():
    """Else the case above would prove nothing about them."""
    tensors = tensors_of([(50,), (50,), (50,)])
    for t, scale in zip(tensors, (0.1, 1.0, 10.0), strict=True):
        t.param.mul_(scale)
    draw(tensors)
    before = [t.param.clone() for t in tensors]
    adam_step([(AdamRule(1.0, adapt=True, trust_bounds=(0.9, 1.1)), tensors)])
    moved = [(t.param - w).abs().mean().item() for t, w in zip(tensors, before, strict=True)]
    assert moved[0] == pytest.approx(0.9, rel=1e-3)
    assert 0.9 <= moved[1] <= 1.1
    assert moved[2] == pytest.approx(1.1, rel=1e-3)


def test_a_weight_or_an_update_of_zeros_moves_by_the_learning_rate():
    still, zero = tensors_of([(4,), (4,)])
    still.grad.zero_()
    zero.param.zero_()
    zero.grad.fill_(2.0)
    before = still.param.clone()
    adam_step([(AdamRule(0.5, adapt=True), [still, zero])])
    assert torch.equal(still.param, before)
    torch.testing.assert_close(zero.param, torch.full((4,), -0.5, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("limit", [0.1, 100.0])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_clipping_and_scaling_over_all_groups(limit, scale):
    first, second = tensors_of(), tensors_of([(6,)])
    draw([*first, *second])
    gradients = [t.grad / (scale or 1) for t in (*first, *second)]
    leaves = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients]
    for leaf, g in zip(leaves, gradients, strict=True):
        leaf.grad = g.clone()
    expected = torch.nn.utils.clip_grad_norm_(leaves, limit)
    before = [t.grad.clone() for t in (*first, *second)]
    groups = [(AdamRule(0.1, betas=(0.0, 0.5)), first), (AdamRule(0.2, betas=(0.0, 0.5)), second)]
    norm = adam_step(groups, max_grad_norm=limit, grad_scale=None if scale is None else torch.tensor(scale))
    torch.testing.assert_close(norm, expected)
    for t, leaf, g in zip((*first, *second), leaves, before, strict=True):
        torch.testing.assert_close(t.exp_avg, leaf.grad)  # beta1 is 0: the moment is the gradient as it was used
        assert torch.equal(t.grad, g), "gradients are left as they are"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_what_clip_grad_norm_does(bad):
    tensors = tensors_of([(4,), (3,)])
    draw(tensors)
    tensors[0].grad[2] = bad
    leaves = [torch.nn.Parameter(t.param.clone()) for t in tensors]
    for leaf, t in zip(leaves, tensors, strict=True):
        leaf.grad = t.grad.clone()
    torch.nn.utils.clip_grad_norm_(leaves, 1.0)
    adam_step([(AdamRule(0.1, betas=(0.0, 0.5)), tensors)], max_grad_norm=1.0)
    for t, leaf in zip(tensors, leaves, strict=True):
        torch.testing.assert_close(t.exp_avg, leaf.grad, equal_nan=True)


def test_found_inf_changes_nothing():
    tensors = tensors_of()
    draw(tensors)
    before = [x.clone() for t in tensors for x in (*t.written(), t.step)]
    assert adam_step([(AdamRule(0.1), tensors)], max_grad_norm=1.0, found_inf=torch.ones(1)) is None
    for x, y in zip((x for t in tensors for x in (*t.written(), t.step)), before, strict=True):
        assert torch.equal(x, y)
    adam_step([(AdamRule(0.1), tensors)], found_inf=torch.zeros(1))
    assert all(t.step.item() == 1 for t in tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_parameters_follow_their_master_weights(dtype):
    tensors = tensors_of([(300,)], dtype, master=True)
    exact, state = tensors[0].param.double(), None
    for _ in range(STEPS):
        draw(tensors)
        state = state or loops.zeros(exact)
        exact = loops.adamw(exact, tensors[0].grad.double(), state, lr=1e-5, eps=1e-6)
        adam_step([(AdamRule(1e-5, weight_decay=0.01), tensors)])
    assert tensors[0].param.dtype == dtype
    torch.testing.assert_close(tensors[0].master.double(), exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(tensors[0].param, tensors[0].master.to(dtype))


def test_a_second_moment_in_bfloat16_would_never_decay():
    """Why exp_avg_sq is float32 whatever state_dtype is."""
    v = torch.tensor(1.0, dtype=torch.bfloat16)
    for _ in range(1000):
        v = v * 0.999
    assert v == 1
    tensors = tensors_of([(1,)], torch.float32, moment=torch.bfloat16)
    tensors[0].exp_avg_sq.fill_(1.0)
    tensors[0].grad.zero_()
    for _ in range(1000):
        adam_step([(AdamRule(0.0), tensors)])
    assert tensors[0].exp_avg_sq.item() == pytest.approx(0.999**1000, rel=1e-4)
