"""Lamb and AdamW as optimizers of PyTorch: trajectories, checkpoints, clipping, loss scaling, errors."""

import copy
import io
import math
import pickle

import optimizer_loops as loops
import pytest
import torch
from numerics import assert_close_to_truth
from torch import nn

from bert_fast import BertConfig, BertForPreTraining
from bert_fast.training import AdamW, Lamb, parameter_groups

STEPS = 50
LR = 0.01


def parameters(dtype=torch.float32, shapes=((40, 30), (64,), (3, 5), ())):
    return [nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9)).to(dtype)) for shape in shapes]


def give_gradients(params, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)


def run(optimizer, params, steps, first=0):
    for i in range(first, first + steps):
        give_gradients(params, i)
        optimizer.step()
    return [p.detach().clone() for p in params]


# ours, and the authors' loop with its settings
TRAJECTORIES = {
    "Lamb": (lambda p: Lamb(p, LR), loops.lamb, {}),
    "Lamb, clipped": (lambda p: Lamb(p, LR, max_grad_norm=1.0), loops.lamb, {"limit": 1.0}),
    "Lamb, uncorrected": (lambda p: Lamb(p, LR, bias_correction=False), loops.lamb, {"correct": False}),
    "Lamb, l2": (lambda p: Lamb(p, LR, adam_w_mode=False), loops.lamb_l2, {}),
    "Lamb, bounded": (lambda p: Lamb(p, LR, trust_bounds=(0.5, 1.0)), loops.lamb, {"bounds": (0.5, 1.0)}),
    "Lamb, always": (lambda p: Lamb(p, LR, weight_decay=0.0, always_adapt=True), loops.lamb, {"decay": 0.0}),
    "Lamb, no decay": (lambda p: Lamb(p, LR, weight_decay=0.0), loops.lamb, {"decay": 0.0, "adapt": False}),
    "AdamW": (lambda p: AdamW(p, LR), loops.adamw, {}),
    "AdamW, Google's": (
        lambda p: AdamW(p, LR, eps=1e-6, bias_correction=False, max_grad_norm=1.0), loops.google_adam, {"limit": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_fifty_steps_follow_the_authors_loops(name):
    make, loop, settings = TRAJECTORIES[name]
    settings = dict(settings)
    limit = settings.pop("limit", math.inf)
    params = parameters()
    expected = {dtype: [p.detach().to(dtype, copy=True) for p in params] for dtype in (torch.float32, torch.float64)}
    states = {dtype: [loops.zeros(w) for w in ws] for dtype, ws in expected.items()}
    optimizer = make(params)
    for i in range(STEPS):
        give_gradients(params, i)
        for dtype, weights in expected.items():
            gradients = loops.clipped([p.grad.to(dtype) for p in params], limit)
            rows = zip(weights, gradients, states[dtype], strict=True)
            expected[dtype] = [loop(w, g, s, lr=LR, **settings) for w, g, s in rows]
        optimizer.step()
    for p, eager, truth in zip(params, expected[torch.float32], expected[torch.float64], strict=True):
        assert_close_to_truth(p, eager, truth, torch.float32, STEPS)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.3, "betas": (0.8, 0.99), "eps": 1e-4}])
def test_adamw_follows_pytorchs(settings):
    ours, theirs, exact = parameters(), parameters(), parameters(torch.float64)
    for p, q in zip(exact, ours, strict=True):
        p.data.copy_(q.data)
    run(AdamW(ours, LR, **settings), ours, STEPS)
    for params in (theirs, exact):
        run(torch.optim.AdamW(params, LR, **settings), params, STEPS)
    for p, eager, truth in zip(ours, theirs, exact, strict=True):
        assert_close_to_truth(p, eager, truth.detach(), torch.float32, STEPS)


def tiny_bert():
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForPreTraining(BertConfig(vocab_size=101, **sizes, **dropout)).train()


def losses_of(model, optimizer, steps):
    ids = torch.randint(5, 101, (4, 16), generator=torch.Generator().manual_seed(1))
    found = []
    for _ in range(steps):
        loss = model(ids, labels=ids, next_sentence_label=torch.tensor([0, 1, 1, 0])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("kind", ["Lamb", "AdamW"])
def test_a_bert_learns_as_with_the_authors_loop(kind):
    ours, theirs = tiny_bert(), tiny_bert()
    if kind == "Lamb":
        optimizer = Lamb(parameter_groups(ours, 0.01), 0.02, max_grad_norm=1.0)
        loop = loops.LoopOptimizer(parameter_groups(theirs, 0.01), loops.lamb, 1.0, lr=0.02)
    else:
        optimizer = AdamW(parameter_groups(ours, 0.01), 1e-3, eps=1e-6, bias_correction=False, max_grad_norm=1.0)
        loop = loops.LoopOptimizer(parameter_groups(theirs, 0.01), loops.google_adam, 1.0, lr=1e-3)
    found, expected = losses_of(ours, optimizer, 30), losses_of(theirs, loop, 30)
    assert found[-1] < found[0] - 0.5, "it learns"
    assert found == pytest.approx(expected, rel=1e-3)


def test_sixteen_bit_parameters_need_their_master_weights():
    for masters, moves in ((True, True), (False, False)):
        p = nn.Parameter(torch.full((64,), 100.0, dtype=torch.bfloat16))
        optimizer = AdamW([p], 1e-2, weight_decay=0.0, master_weights=masters)
        for _ in range(200):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert (p[0].item() < 99) == moves
        assert ("master" in optimizer.state[p]) == masters


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [Lamb, AdamW])
def test_other_dtypes_hold_the_contract(kind, dtype):
    ours, exact = parameters(dtype), parameters(torch.float64)
    for p, q in zip(exact, ours, strict=True):
        p.data.copy_(q.data)
    optimizer, truth = kind(ours, LR), kind(exact, LR)
    for i in range(5):
        give_gradients(ours, i)
        for p, q in zip(exact, ours, strict=True):
            p.grad = q.grad.double()
        optimizer.step()
        truth.step()
    for p, q in zip(ours, exact, strict=True):
        eager = q.detach().to(dtype)
        if dtype == torch.float64:
            assert torch.equal(p, q)
        else:
            assert_close_to_truth(p, eager, q.detach(), dtype)


def test_state_in_bfloat16_halves_the_first_moment_and_follows_float32_closely():
    narrow, wide = parameters(), parameters()
    small = Lamb(narrow, LR, state_dtype=torch.bfloat16)
    run(small, narrow, STEPS)
    run(Lamb(wide, LR), wide, STEPS)
    assert {s["exp_avg"].dtype for s in small.state.values()} == {torch.bfloat16}
    assert {s["exp_avg_sq"].dtype for s in small.state.values()} == {torch.float32}
    moved = torch.cat([(p - q).flatten() for p, q in zip(wide, parameters(), strict=True)]).norm()
    apart = torch.cat([(p - q).flatten() for p, q in zip(wide, narrow, strict=True)]).norm()
    assert 0 < apart < 0.02 * moved


# Checkpoints


@pytest.mark.parametrize("kind", [Lamb, AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_run_goes_on_as_if_it_had_not_stopped(kind, dtype):
    whole, parts = parameters(dtype), parameters(dtype)
    optimizer = kind(whole, LR)
    expected = run(optimizer, whole, 8)
    first = kind(parts, LR)
    run(first, parts, 4)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = kind(parts, 123.0)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.param_groups[0]["lr"] == LR
    found = run(second, parts, 4, first=4)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_by_themselves(how):
    params = parameters(torch.bfloat16)
    optimizer = Lamb(params, LR, max_grad_norm=0.5, state_dtype=torch.bfloat16)
    run(optimizer, params, 2)
    other = how(optimizer)
    others = other.param_groups[0]["params"]
    assert (other.max_grad_norm, other.state_dtype, other.master_weights) == (0.5, torch.bfloat16, True)
    for x, y in zip(run(optimizer, params, 2, 2), run(other, others, 2, 2), strict=True):
        assert torch.equal(x, y)


def test_state_loads_into_another_dtype_without_being_rounded():
    wide = parameters()
    saved = Lamb(wide, LR)
    run(saved, wide, 3)
    narrow = parameters(torch.bfloat16)
    loaded = Lamb(narrow, LR)
    loaded.load_state_dict(saved.state_dict())
    for p, q in zip(narrow, wide, strict=True):
        assert torch.equal(loaded.state[p]["exp_avg"], saved.state[q]["exp_avg"])
        assert loaded.state[p]["exp_avg_sq"].dtype == torch.float32
        assert loaded.state[p]["step"] == 3
        assert torch.equal(loaded.state[p]["master"], p.float()), "made from the parameter"
    back = Lamb(parameters(), LR)
    back.load_state_dict(loaded.state_dict())
    assert all("master" not in s for s in back.state.values())
    half = Lamb(parameters(), LR, state_dtype=torch.bfloat16)
    half.load_state_dict(saved.state_dict())
    assert all(s["exp_avg"].dtype == torch.bfloat16 for s in half.state.values())


def test_loaded_state_is_a_copy():
    params = parameters()
    saved = AdamW(params, LR)
    run(saved, params, 1)
    loaded = AdamW(parameters(), LR)
    loaded.load_state_dict(saved.state_dict())
    run(loaded, loaded.param_groups[0]["params"], 1)
    assert all(s["step"] == 1 for s in saved.state.values())


@pytest.mark.parametrize("fused", [False, True])
def test_state_of_pytorchs_adamw_is_taken_over_and_given_back(fused):
    ours, theirs = parameters(), parameters()
    peer = torch.optim.AdamW(theirs, LR, fused=fused)
    run(peer, theirs, 3)
    optimizer = AdamW(ours, LR)
    optimizer.load_state_dict(peer.state_dict())
    for p, q in zip(ours, theirs, strict=True):
        p.data.copy_(q.data)
    for x, y in zip(run(optimizer, ours, 3, 3), run(peer, theirs, 3, 3), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)
    again = torch.optim.AdamW(ours, LR)
    again.load_state_dict(optimizer.state_dict())
    run(again, ours, 1, 6)
    assert all(s["step"] == 7 for s in again.state.values())


def test_hooks_around_loading_see_what_is_loaded():
    params = parameters()
    saved = Lamb(params, LR)
    run(saved, params, 1)
    loaded, seen = Lamb(parameters(torch.bfloat16), LR), []
    loaded.register_load_state_dict_pre_hook(lambda _, state: {**state, "param_groups": state["param_groups"]})
    loaded.register_load_state_dict_post_hook(lambda o: seen.extend(s["exp_avg"].dtype for s in o.state.values()))
    loaded.load_state_dict(saved.state_dict())
    assert set(seen) == {torch.float32}
    with pytest.raises(ValueError, match="parameter group"):
        loaded.load_state_dict(Lamb([params[0]], LR).state_dict())
    assert len(loaded._optimizer_load_state_dict_pre_hooks) == 1


# What every optimizer of PyTorch does


def test_groups_are_added_with_settings_of_their_own():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = Lamb([first], LR)
    optimizer.add_param_group({"params": [second], "lr": 0.0, "weight_decay": 0.0})
    run(optimizer, [first, second], 1)
    assert not torch.equal(first, torch.ones(3))
    assert torch.equal(second, torch.ones(3))
    third = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": third})
    run(optimizer, [first, third], 1, 1)
    assert [optimizer.state[p]["step"].item() for p in (first, second, third)] == [2, 2, 1]


def test_closure_hooks_and_parameters_without_gradient():
    p, idle = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, seen = AdamW([p, idle], LR), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3
    assert seen == ["before", "after"]
    assert torch.equal(idle, torch.ones(3))
    assert idle not in optimizer.state
    optimizer.zero_grad()
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    assert optimizer.grad_norm is None


def test_schedulers_turn_the_learning_rate_of_numbers_and_of_tensors():
    for lr in (LR, torch.tensor(LR)):
        params = parameters()
        optimizer = AdamW(params, lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
        run(optimizer, params, 1)
        scheduler.step()
        before = [p.detach().clone() for p in params]
        after = run(optimizer, params, 1)
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_norm_before_clipping_is_kept():
    params = parameters()
    give_gradients(params, 0)
    optimizer = Lamb(params, LR, max_grad_norm=0.1)
    optimizer.step()
    expected = torch.nn.utils.get_total_norm([p.grad for p in params])
    torch.testing.assert_close(optimizer.grad_norm, expected)


@pytest.mark.parametrize("limit", [None, 0.5])
def test_grad_scaler_unscales_inside_the_step_and_skips_what_overflowed(limit):
    ours, plain = parameters(), parameters()
    scaled, expected = Lamb(ours, LR, max_grad_norm=limit), Lamb(plain, LR, max_grad_norm=limit)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    for i in range(4):
        scaler.scale(torch.ones(()))
        give_gradients(ours, i, scale=1024.0 if i < 2 else 512.0)
        if i == 1:
            ours[0].grad[3, 4] = math.inf
        else:
            give_gradients(plain, i)
            expected.step()
        scaler.step(scaled)
        scaler.update()
    assert scaler.get_scale() == 512
    assert [s["step"].item() for s in scaled.state.values()] == [3] * len(ours)
    for p, q in zip(ours, plain, strict=True):
        torch.testing.assert_close(p, q)


# Errors


@pytest.mark.parametrize("kind", [Lamb, AdamW])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr": -1.0}, "lr must be at least 0, not -1.0"),
        ({"lr": torch.tensor(-1.0)}, "lr must be at least 0, not -1.0"),
        ({"lr": torch.tensor([math.nan])}, r"lr must be at least 0, not tensor\(\[nan\]\)"),
        ({"lr": torch.ones(2)}, "lr must be a number or a tensor of one element, not of 2"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"eps": -1e-8}, "eps must be at least 0"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0, not nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0 or None, not 0.0"),
        ({"state_dtype": torch.float16}, "state_dtype must be torch.float32 or torch.bfloat16, not torch.float16"),
    ],
)
def test_settings_out_of_range_are_named(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(parameters(), **settings)


def test_bounds_in_a_group_are_checked_too():
    optimizer = Lamb(parameters(), LR)
    with pytest.raises(ValueError, match=r"trust_bounds must be 0 <= low <= high, not \(2, 1\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "trust_bounds": (2, 1)})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64], ids=str)
def test_parameters_that_are_no_real_numbers_are_refused(dtype):
    optimizer = Lamb(parameters(), LR)
    with pytest.raises(TypeError, match=f"Lamb moves real floating-point parameters, not {dtype}"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_before_anything_moves():
    plain, table = nn.Parameter(torch.ones(3)), nn.Embedding(5, 2, sparse=True)
    optimizer = AdamW([plain, table.weight], LR)
    give_gradients([plain], 0)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="AdamW takes dense gradients, not torch.sparse_coo"):
        optimizer.step()
    assert torch.equal(plain, torch.ones(3))


# Which parameters decay


def test_biases_and_norms_do_not_decay_and_every_parameter_has_one_group():
    model = tiny_bert()
    model.bert.pooler.dense.weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    for p in plain["params"]:
        assert names[id(p)].endswith("bias") or "LayerNorm" in names[id(p)], names[id(p)]
    for p in decayed["params"]:
        assert names[id(p)].endswith("weight") and "LayerNorm" not in names[id(p)], names[id(p)]
    both = [id(p) for p in decayed["params"] + plain["params"]]
    assert len(both) == len(set(both)) == len(names) - 1


def test_norms_of_other_libraries_and_empty_groups():
    class RMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))

    model = nn.Sequential(nn.Linear(2, 2), RMSNorm())
    model[0].weight.requires_grad_(False)
    (only,) = parameter_groups(model, 0.1)
    assert only["weight_decay"] == 0
    assert len(only["params"]) == 2


@pytest.mark.parametrize("name", ["maximize", "amsgrad"])
def test_a_setting_that_is_not_done_here_is_refused(name):
    p = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=f"{name} of a parameter group must be off"):
        AdamW([{"params": [p], name: True}])
    theirs = torch.optim.AdamW([p], **{name: True})
    with pytest.raises(ValueError, match=f"{name} of a parameter group must be off"):
        AdamW([p]).load_state_dict(theirs.state_dict())


def test_state_of_another_shape_is_refused():
    narrow, wide = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 3))
    narrow.grad = torch.ones(3)
    saved = AdamW([narrow])
    saved.step()
    with pytest.raises(ValueError, match=r"must be \[2, 3\], as its parameter, not \[3\]"):
        AdamW([wide]).load_state_dict(saved.state_dict())


def test_a_scalar_beside_a_double_is_clipped():
    parameters = [torch.nn.Parameter(torch.ones((), dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    for p in parameters:
        p.grad = torch.full_like(p, 3.0)
    AdamW(parameters, max_grad_norm=1.0).step()
    assert all(p < 1 for p in parameters)
