"""Weights changed in every way a user can change them, after a forward pass that derived others from them.

Each way is tried on a model that has just run without gradients. What it then computes must be what a model made
anew with the same weights computes: never the numbers of the old weights.
"""

import copy
import gc

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
import torch.nn.utils.parametrize as parametrize
from torch import nn
from torch.nn.utils import prune
from twins import TINY, batch, config, ours, padding, randomize

import bert_fast
from bert_fast import extension

SETTINGS = ["onednn", "torch"]
H = TINY["hidden_size"]


def run(model):
    with torch.no_grad():
        return model(**batch(padding("holes"))).logits.clone()


def linears(model):
    """One of each kind: joined q, k and v; residual; fused GELU; pooler; head."""
    layer = model.bert.encoder.layer[1]
    return [
        layer.attention.self.value,
        layer.intermediate.dense,
        layer.output.dense,
        model.bert.pooler.dense,
        model.cls.predictions.decoder,
    ]


def fresh(model):
    """A copy that never ran, and so derived nothing."""
    return copy.deepcopy(model)


def check(change, cpu_linear):
    """Every linear in turn, so that one kind that is missed cannot hide behind the others."""
    for index in range(len(linears(ours("BertForPreTraining")))):
        model = ours("BertForPreTraining")
        before = [run_both(model) for _ in range(2)][1]
        change(linears(model)[index])
        after, expected = run_both(model), run_both(fresh(model))
        assert any(not torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in zip(after, before, strict=True)), index
        for got, want in zip(after, expected, strict=True):
            assert torch.allclose(got, want, rtol=0, atol=1e-5), (
                f"linear {index} gave numbers of weights that are no more"
            )


def run_both(model):
    with torch.no_grad():
        output = model(**batch(padding("holes")))
    return output.prediction_logits.clone(), output.seq_relationship_logits.clone()


def through_numpy(linear):
    linear.weight.detach().numpy()[:] *= 1.5


def optimizer_step(linear, **options):
    linear.weight.grad = torch.randn_like(linear.weight)
    linear.bias.grad = torch.randn_like(linear.bias)
    torch.optim.AdamW([linear.weight, linear.bias], lr=0.1, **options).step()


def sgd_step(linear, **options):
    linear.weight.grad = torch.randn_like(linear.weight)
    torch.optim.SGD([linear.weight], lr=0.1, **options).step()


def swap_data(linear):
    linear.weight.data = linear.weight.data * 1.5


def new_parameter(linear):
    linear.weight = nn.Parameter(linear.weight.detach() * 1.5)


def round_trip_through_other_memory(linear):
    """A freed weight's memory may come back under the next one: the pointer alone proves nothing."""
    for factor in (1.1, 1.2, 1.3):
        linear.weight = nn.Parameter(linear.weight.detach() * factor)


def load_linear(linear):
    linear.load_state_dict({k: v * 1.5 for k, v in linear.state_dict().items()})


def assign_linear(linear):
    linear.load_state_dict({k: v * 1.5 for k, v in linear.state_dict().items()}, assign=True)


def from_vector(linear):
    vector = torch.nn.utils.parameters_to_vector(linear.parameters()).detach()
    torch.nn.utils.vector_to_parameters(vector * 1.5, linear.parameters())


def in_inference_mode(linear):
    with torch.inference_mode():
        linear.weight.mul_(1.5)


CHANGES = {
    "in_place": lambda m: m.weight.detach().mul_(1.5),
    "in_place_without_grad": lambda m: torch.no_grad()(m.weight.mul_)(1.5),
    "in_inference_mode": in_inference_mode,
    "data_in_place": lambda m: m.weight.data.mul_(1.5),
    "data_copy": lambda m: m.weight.data.copy_(m.weight.data * 1.5),
    "data_bias": lambda m: m.bias.data.mul_(3),
    "data_swapped": swap_data,
    "copy_": lambda m: torch.no_grad()(m.weight.copy_)(m.weight * 1.5),
    "numpy": through_numpy,
    "one_element_in_place": lambda m: torch.no_grad()(m.bias.__setitem__)(0, 3.0),
    "one_weight_in_place": lambda m: torch.no_grad()(m.weight.__setitem__)((1, 3), 9.0),
    "new_parameter": new_parameter,
    "new_parameters_in_old_memory": round_trip_through_other_memory,
    "load_state_dict": load_linear,
    "load_state_dict_assign": assign_linear,
    "vector_to_parameters": from_vector,
    "init": lambda m: nn.init.normal_(m.weight),
    "bias_removed": lambda m: m.bias.zero_(),
    "adamw": optimizer_step,
    "adamw_fused": lambda m: optimizer_step(m, fused=True),
    "adamw_foreach": lambda m: optimizer_step(m, foreach=True),
    "sgd_fused": lambda m: sgd_step(m, fused=True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_a_changed_linear_is_never_read_stale(cpu_linear, change):
    with torch.no_grad() if change == "bias_removed" else torch.enable_grad():
        check(CHANGES[change], cpu_linear)


@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_single_elements_written_through_data_need_refresh_and_get_it(cpu_linear):
    model = ours("BertForMaskedLM")
    run(model)
    model.bert.encoder.layer[0].intermediate.dense.weight.data[7, 3] += 100.0
    model.refresh()
    assert torch.allclose(run(model), run(fresh(model)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_moved_to_another_dtype(cpu_linear, dtype):
    model = ours("BertForMaskedLM")
    run(model)
    model.to(dtype)
    output = run(model)
    assert output.dtype == dtype
    assert torch.equal(output, run(fresh(model)))
    model.float()
    assert torch.equal(run(model), run(fresh(model)))


@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_a_submodule_moved_to_another_dtype_and_back(cpu_linear):
    model = ours("BertForMaskedLM")
    run(model)
    model.bert.encoder.layer[0].to(torch.bfloat16).float()
    assert torch.equal(run(model), run(fresh(model)))


@pytest.mark.parametrize("wrapped", [False, True], ids=["the_model", "inside_another_module"])
@pytest.mark.parametrize("assign", [False, True], ids=["copied", "assigned"])
@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_load_state_dict(cpu_linear, assign, wrapped):
    model, other = ours("BertForMaskedLM"), ours("BertForMaskedLM", seed=1)
    run(model)
    target, prefix = (nn.ModuleDict({"inner": model}), "inner.") if wrapped else (model, "")
    target.load_state_dict({prefix + k: v for k, v in other.state_dict().items()}, assign=assign)
    assert torch.equal(run(model), run(other))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_fused", "sgd"])
@pytest.mark.parametrize("compiled", [True, False], ids=["extension", "no_extension"])
@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_trained_between_two_evaluations_without_calling_eval_or_train(cpu_linear, compiled, optimizer, monkeypatch):
    """A fused optimizer moves no version counter; without the extension only the training forward gives it away."""
    if not compiled:
        monkeypatch.setattr(extension, "module", lambda: None)
    model = ours("BertForMaskedLM")
    kinds = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05),
        "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    }
    steps = kinds[optimizer](model.parameters())
    for _ in range(3):
        before = run(model)
        model(**batch(padding("holes")), labels=batch()["input_ids"]).loss.backward()
        steps.step()
        steps.zero_grad()
        after = run(model)
        assert not torch.allclose(after, before, rtol=0, atol=1e-3)
        assert torch.equal(after, run(fresh(model)))


# Modules that are no plain linears any more


class LoRA(nn.Module):
    """As PEFT wraps a layer: `weight` is the base layer's, which alone is not what the module computes."""

    def __init__(self, base, rank=4):
        super().__init__()
        self.base_layer = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def set_module(model, old, new):
    for name, module in model.named_modules():
        if module is old:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)
            return
    raise AssertionError("no such module")


def wrap_lora(model, linear):
    set_module(model, linear, LoRA(linear))


def subclass(model, linear):
    doubled = Doubled(linear.in_features, linear.out_features)
    doubled.load_state_dict(linear.state_dict())
    set_module(model, linear, doubled)


def replace(model, linear):
    new = nn.Linear(linear.in_features, linear.out_features)
    set_module(model, linear, new)


def replace_without_bias(model, linear):
    set_module(model, linear, nn.Linear(linear.in_features, linear.out_features, bias=False))


def replace_by_a_chain(model, linear):
    set_module(model, linear, nn.Sequential(linear, nn.Tanh()))


def replace_forward(model, linear):
    inner = linear.forward
    linear.forward = lambda x: inner(x) * 2


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


SWAPS = {
    "lora": wrap_lora,
    "subclass": subclass,
    "new_linear": replace,
    "linear_without_bias": replace_without_bias,
    "sequential": replace_by_a_chain,
    "forward_replaced_on_the_instance": replace_forward,
    "forward_hook": lambda _, m: m.register_forward_hook(lambda module, args, out: out * 2),
    "forward_pre_hook": lambda _, m: m.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "parametrization": lambda _, m: parametrize.register_parametrization(m, "weight", Halved()),
    "weight_norm": lambda _, m: parametrizations.weight_norm(m).parametrizations.weight.original0.data.mul_(3),
    "spectral_norm": lambda _, m: parametrizations.spectral_norm(m).eval(),
    "pruned": lambda _, m: prune.l1_unstructured(m, "weight", 0.5),
    "pruned_for_good": lambda _, m: prune.remove(prune.l1_unstructured(m, "weight", 0.5), "weight"),
}


def by_calls(model):
    """What the model computes when every module is called: a hook that changes nothing forbids all shortcuts."""
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        return run_both(model)
    finally:
        handle.remove()


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_a_module_that_is_no_plain_linear_any_more_is_called(cpu_linear, swap):
    for index in range(len(linears(ours("BertForPreTraining")))):
        model = ours("BertForPreTraining")
        if linears(model)[index] is model.cls.predictions.decoder and swap in ("lora", "sequential"):
            continue  # tied names point into it
        before = run_both(model)
        SWAPS[swap](model, linears(model)[index])
        after, expected = run_both(model), by_calls(model)
        assert any(not torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in zip(after, before, strict=True)), index
        for got, want in zip(after, expected, strict=True):
            assert torch.allclose(got, want, rtol=0, atol=2e-5), index
        grad = model(**batch(padding("holes")))
        assert torch.allclose(grad.prediction_logits, expected[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_removing_a_hook_brings_the_old_numbers_back(cpu_linear):
    model = ours("BertForMaskedLM")
    before = run(model)
    handle = model.bert.encoder.layer[0].attention.self.key.register_forward_hook(lambda m, a, out: out * 2)
    assert not torch.allclose(run(model), before, atol=1e-3)
    handle.remove()
    assert torch.equal(run(model), before)


def test_a_global_hook_sees_every_linear():
    model = ours("BertForMaskedLM")
    run(model)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    run(model)
    handle.remove()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            assert sum(m is module for m in seen) == 1


@pytest.mark.parametrize("bits", ["bfloat16", "float16"])
def test_hooks_see_the_dtype_of_their_module_though_rows_are_computed_in_float32(bits):
    dtype = getattr(torch, bits)
    model = ours().to(dtype)
    seen = []
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            module.register_forward_hook(lambda m, args, out: seen.append((args[0].dtype, out.dtype)))
    with torch.no_grad():
        output = model(**batch(padding("right")))
    assert output[0].dtype == dtype
    assert set(seen) == {(dtype, dtype)}
    assert len(seen) == 1 + 2 * 8 + 1


def test_weights_frozen_and_thawed():
    model = ours("BertForMaskedLM")
    before = run(model)
    model.requires_grad_(False)
    assert torch.equal(run(model), before)
    assert torch.allclose(model(**batch(padding("holes"))).logits, before, rtol=0, atol=1e-5)
    model.requires_grad_(True)
    assert torch.equal(run(model), before)


def test_weights_shared_between_two_layers_after_a_forward():
    model = ours("BertForMaskedLM")
    run(model)
    layers = model.bert.encoder.layer
    layers[1].attention.self.query.weight = layers[0].attention.self.query.weight
    # The modules' own products may round otherwise than packed ones.
    torch.testing.assert_close(run(model), by_hand(model), rtol=0, atol=1e-5)


def by_hand(model):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        return run(fresh(model))
    finally:
        handle.remove()


@pytest.mark.parametrize("cpu_linear", SETTINGS, indirect=True)
def test_strided_weights_changed_through_data(cpu_linear):
    model = ours()
    dense = model.encoder.layer[0].intermediate.dense
    dense.weight = nn.Parameter(torch.randn(H, TINY["intermediate_size"]).t() * 0.2)
    assert not dense.weight.is_contiguous()
    results = []
    with torch.no_grad():
        for _ in range(2):
            output = model(**batch(padding("holes")))[0]
            model.refresh()
            assert torch.equal(output, model(**batch(padding("holes")))[0])
            results.append(output)
            dense.weight.data.mul_(2)
    assert not torch.allclose(*results, atol=1e-3)


def test_parameters_swapped_by_functional_call_are_read():
    model, other = ours("BertForMaskedLM"), ours("BertForMaskedLM", seed=3)
    expected = run(other)
    before = run(model)
    weights = dict(other.named_parameters())
    with torch.no_grad():
        output = torch.func.functional_call(model, weights, (), batch(padding("holes")))
    assert torch.equal(output.logits, expected)
    assert torch.equal(run(model), before)


@pytest.mark.parametrize("cpu_linear", [*SETTINGS, "auto"], indirect=True)
def test_switching_the_cpu_linear_after_a_forward(cpu_linear):
    model = ours("BertForMaskedLM")
    before = run(model)
    for name in ("torch", "onednn", "auto"):
        bert_fast.set_cpu_linear(name)
        assert torch.allclose(run(model), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_inference_mode_and_no_grad_share_a_model(mode):
    model = ours("BertForMaskedLM")
    with torch.inference_mode():
        first = model(**batch(padding("holes"))).logits.clone()
    second = run(model)
    assert torch.equal(first, second)
    model.bert.encoder.layer[0].output.dense.weight.data.mul_(2)
    with getattr(torch, mode)():
        third = model(**batch(padding("holes"))).logits
    assert torch.equal(third, run(fresh(model)))
    model(**batch(padding("holes"))).logits.sum().backward()


def test_a_model_made_in_inference_mode_runs_and_changes():
    with torch.inference_mode():
        model = randomize(bert_fast.BertModel(config())).eval()
        first = model(**batch())[0].clone()
        model.encoder.layer[0].output.dense.weight.mul_(2)
        second = model(**batch())[0].clone()
        assert not torch.allclose(first, second, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(model(**batch())[0], second)


def test_the_random_state_is_not_touched_by_inference():
    bert_fast.set_cpu_linear("auto")
    model = ours("BertForMaskedLM")
    state = torch.get_rng_state()
    run(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_deleted_model_leaves_no_derived_weights_behind():
    from bert_fast import derived

    gc.collect()
    before = len(derived._entries)
    model = ours()
    with torch.no_grad():
        model(**batch())
    assert len(derived._entries) > before
    del model
    gc.collect()
    assert len(derived._entries) == before
