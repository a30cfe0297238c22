"""The cache of derived weights: when it answers, when it forgets, whom it serves, and whom it does not."""

import copy
import gc
import threading

import pytest
import torch
from torch import nn

from bert_fast import derived, extension


@pytest.fixture
def linear():
    return nn.Linear(64, 48)


def counting(linear, builds):
    def build():
        builds.append(linear.weight.detach().clone())
        return len(builds)

    return build


def get(linear, builds, key="key"):
    return derived.derive(linear, key, [linear.weight, linear.bias], counting(linear, builds))


def test_built_once_per_key_and_owner(linear):
    builds = []
    assert [get(linear, builds) for _ in range(3)] == [1, 1, 1]
    assert get(linear, builds, "other") == 2
    assert get(linear, builds) == 1
    assert get(nn.Linear(64, 48), builds) == 3


CHANGES = {
    "in_place": lambda m: torch.no_grad()(m.weight.mul_)(2),
    "data": lambda m: m.weight.data.mul_(2),
    "bias_data": lambda m: m.bias.data.add_(1),
    "first_element_of_data": lambda m: m.weight.data.view(-1)[:2].add_(1),
    "last_element_of_data": lambda m: m.weight.data.view(-1)[-2:].add_(1),
    "new_tensor": lambda m: setattr(m, "weight", nn.Parameter(m.weight.detach().clone())),
    "dtype": lambda m: m.to(torch.bfloat16),
    "numpy": lambda m: m.weight.detach().numpy().__imul__(2),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_built_anew_after_a_change(linear, change):
    if "data" in change or change == "numpy":
        assert extension.module() is not None, "without the extension, writes past the version counter need refresh()"
    builds = []
    get(linear, builds)
    CHANGES[change](linear)
    assert get(linear, builds) == 2
    assert get(linear, builds) == 2


def test_a_freed_pointer_that_comes_back_is_not_taken_for_the_old_tensor(linear):
    """Without a reference to the sources, a new weight could get the old one's address and version."""
    builds, pointers = [], set()
    for step in range(20):
        linear.weight = nn.Parameter(torch.full((48, 64), float(step)))
        pointers.add(linear.weight.data_ptr())
        get(linear, builds)
        assert (builds[-1] == step).all()
    assert len(builds) == 20


def test_dropped_for_a_model_and_its_submodules(linear):
    model = nn.Sequential(nn.Sequential(linear))
    other, builds = nn.Linear(4, 4), []
    get(linear, builds)
    get(other, builds)
    derived.drop(model)
    assert get(linear, builds) == 3
    assert get(other, builds) == 2


def test_an_entry_dies_with_its_module():
    gc.collect()
    before = len(derived._entries)
    module = nn.Linear(4, 4)
    get(module, [])
    assert len(derived._entries) == before + 1
    del module
    gc.collect()
    assert len(derived._entries) == before


def test_a_copy_derives_its_own(linear):
    builds = []
    get(linear, builds)
    assert get(copy.deepcopy(linear), builds) == 2


def test_threads_build_what_they_need_and_agree(linear):
    values, start = [], threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(50):
            built = derived.derive(linear, "sum", [linear.weight], lambda: linear.weight.detach().sum().item())
            values.append(built)
            derived.drop(linear)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(values) == 400
    assert set(values) == {linear.weight.detach().sum().item()}


# When derived weights may be used at all


def test_allowed_without_gradients_only():
    assert not derived.allowed()
    with torch.no_grad():
        assert derived.allowed()
        with torch.enable_grad():
            assert not derived.allowed()
    with torch.inference_mode():
        assert derived.allowed()


def test_not_allowed_while_compiling():
    seen = []

    @torch.compile(backend="eager", fullgraph=True)
    def run(x):
        return x + 1 if derived.allowed() else x + 2

    with torch.no_grad():
        seen.append(run(torch.zeros(1)).item())
    assert seen == [2]


@pytest.mark.filterwarnings("ignore")
def test_not_allowed_while_tracing():
    seen = []

    def run(x):
        seen.append(derived.allowed())
        return x + 1

    with torch.no_grad():
        torch.jit.trace(run, torch.zeros(1), check_trace=False)
    assert seen == [False]


def test_not_allowed_under_dispatch_modes_functional_transforms_forward_gradients_and_global_hooks():
    from torch.autograd import forward_ad
    from torch.utils.flop_counter import FlopCounterMode

    seen = {}
    with torch.no_grad():
        with FlopCounterMode(display=False):
            seen["dispatch mode"] = derived.allowed()
        with forward_ad.dual_level():
            seen["forward mode"] = derived.allowed()
        torch.func.vmap(lambda x: seen.update(vmap=derived.allowed()) or x)(torch.zeros(2))
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        seen["global hook"] = derived.allowed()
        handle.remove()
        assert derived.allowed()
    assert seen == dict.fromkeys(seen, False)
    assert len(seen) == 4


# Which modules may be read past


class Sub(nn.Linear):
    pass


def hooked(hook):
    linear = nn.Linear(4, 4)
    getattr(linear, hook)(lambda *_: None)
    return linear


def forwarded():
    linear = nn.Linear(4, 4)
    linear.forward = linear.forward
    return linear


def subclassed_weight():
    class Tagged(torch.Tensor):
        pass

    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.randn(4, 4).as_subclass(Tagged))
    return linear


NOT_PLAIN = {
    "subclass": lambda: Sub(4, 4),
    "forward_hook": lambda: hooked("register_forward_hook"),
    "forward_pre_hook": lambda: hooked("register_forward_pre_hook"),
    "full_backward_hook": lambda: hooked("register_full_backward_hook"),
    "full_backward_pre_hook": lambda: hooked("register_full_backward_pre_hook"),
    "forward_replaced": forwarded,
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "weight_of_a_tensor_subclass": subclassed_weight,
    "other_module": lambda: nn.Identity(),
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_not_plain(case):
    assert not derived.plain_linear(NOT_PLAIN[case]())


def test_plain():
    assert derived.plain_linear(nn.Linear(4, 4))
    assert derived.plain_linear(nn.Linear(4, 4, bias=False))
    assert derived.plain_norm(nn.LayerNorm(4))
    assert not derived.plain_norm(nn.LayerNorm(4, bias=False))
    assert not derived.plain_norm(nn.LayerNorm(4, elementwise_affine=False))
    assert derived.plain(nn.Dropout(), nn.Dropout)
    assert not derived.plain(nn.Dropout1d(), nn.Dropout)
    linear = hooked("register_state_dict_pre_hook")
    assert derived.plain_linear(linear), "hooks on the state dict change no number"


def test_not_plain_under_a_global_hook():
    handle = nn.modules.module.register_module_forward_pre_hook(lambda *_: None)
    assert not derived.plain_linear(nn.Linear(4, 4))
    handle.remove()
    assert derived.plain_linear(nn.Linear(4, 4))


def test_trackable():
    with torch.inference_mode():
        inference = torch.ones(4)
    assert derived.trackable([torch.ones(4), torch.ones(2, 3)])
    assert not derived.trackable([torch.ones(4), inference])
    assert not derived.trackable([torch.ones(2, 3).t()])
    assert not derived.trackable([torch.ones(1).expand(4)])
